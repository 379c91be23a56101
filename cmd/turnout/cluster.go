package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

func (a *app) clusterCommand() *cobra.Command {
	return group("cluster", "Broker clusters and their nodes",
		a.clusterAdd(), a.clusterSet(), a.clusterList(), a.clusterShow(), a.clusterRemove(), a.clusterNodeCommand())
}

// clusterFlags describe a broker cluster.
type clusterFlags struct {
	driver, credential                                   string
	urls, nodes                                          []string
	port                                                 uint16
	weight                                               uint32
	channel, channelURL, channelCredential, channelTopic string
}

func (a *app) clusterAdd() *cobra.Command {
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a broker cluster",
		Long: `Add a broker cluster. Its nodes are found through the management URLs (driver emqx), or are those that --node names (driver
static). With driver emqx, --node overrides where devices reach a node of that name. --url is the brokers' URL here; the gateway's is
TURNOUT_URL or --gateway-url.`,
		Example: `  turnout cluster add west --url http://10.20.0.1:18083 --credential file:/run/secrets/west --channel emqx
  turnout cluster add lab --node a=10.30.0.1:1883 --node b=10.30.0.2:1883 --channel mqtt`,
		Args: cobra.ExactArgs(1),
	}
	k := addClusterFlags(c)
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		var spec client.ClusterSpec
		if k.driver == "" && len(k.urls) == 0 && len(k.nodes) > 0 {
			spec.Driver = "static"
		}
		if err := k.layOver(&spec, c.Flags().Changed); err != nil {
			return err
		}
		o := w.options()
		o.IfNoneMatch = true
		res, err := cl.PutCluster(ctx, args[0], spec, o)
		if err != nil {
			return err
		}
		return a.printWrite(res, fmt.Sprintf("cluster %s added", cell(args[0])))
	})
}

func (a *app) clusterSet() *cobra.Command {
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Change a broker cluster; what no flag names stays",
		Long: `Change a broker cluster. What no flag names stays as it is; --url gives the whole list anew, --node adds or changes an address.
The write is refused when somebody else changed the cluster in between.`,
		Example: `  turnout cluster set west --node emqx@10.20.0.3=broker-3.example:1883
  turnout cluster set lab --remove-node b --weight 0`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeCluster(0),
	}
	k := addClusterFlags(c)
	var gone []string
	c.Flags().StringArrayVar(&gone, "remove-node", nil, "`NAME` whose address is taken out; with driver static the node leaves; may be repeated")
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		cluster, err := cl.Cluster(ctx, args[0])
		if err != nil {
			return err
		}
		spec := cluster.Spec
		for _, name := range gone {
			if _, ok := spec.Addresses[name]; !ok {
				return usageError("--remove-node names a node that has no address entry")
			}
			delete(spec.Addresses, name)
		}
		if err := k.layOver(&spec, c.Flags().Changed); err != nil {
			return err
		}
		o := w.options()
		o.IfMatch = cluster.Version
		res, err := cl.PutCluster(ctx, args[0], spec, o)
		if err != nil {
			return err
		}
		return a.printWrite(res, fmt.Sprintf("cluster %s changed", cell(args[0])))
	})
}

func addClusterFlags(c *cobra.Command) *clusterFlags {
	k := &clusterFlags{}
	f := c.Flags()
	choiceFlag(c, &k.driver, "driver", "", "how the nodes are found; without it emqx, or static when there is no --url", "emqx", "static")
	f.StringArrayVar(&k.urls, "url", nil, "management `URL` of the brokers, tried in order; may be repeated")
	f.StringArrayVar(&k.nodes, "node", nil, "`NAME=HOST:PORT` where devices reach a node; may be repeated")
	f.StringVar(&k.credential, "credential", "", "`REFERENCE` to key:secret of the management API: env:NAME or file:/path on every gateway")
	f.Uint16Var(&k.port, "port", 0, "MQTT `PORT` of nodes that --node does not name (default 1883)")
	f.Uint32Var(&k.weight, "weight", 0, "`SHARE` of unknown devices under the weighted policy (default 1)")
	choiceFlag(c, &k.channel, "channel", "", "how commands reach the devices", "emqx", "mqtt")
	f.StringVar(&k.channelURL, "channel-url", "", "`URL` of the channel, where it is not the management URL or the device's node")
	f.StringVar(&k.channelCredential, "channel-credential", "", "`REFERENCE` to the channel's credential: env:NAME or file:/path")
	f.StringVar(&k.channelTopic, "topic", "", "topic `TEMPLATE` of commands; {key} stands for the device key")
	return k
}

// layOver writes the flags that were given into a spec; changed reports whether one was.
func (k *clusterFlags) layOver(spec *client.ClusterSpec, changed func(string) bool) error {
	if changed("driver") {
		spec.Driver = k.driver
	}
	if changed("url") {
		spec.ManagementURLs = k.urls
	}
	if changed("credential") {
		spec.Credential = k.credential
	}
	given := map[string]string{}
	for _, n := range k.nodes {
		// A node name may hold '=', an address never does.
		i := strings.LastIndexByte(n, '=')
		if i < 1 || i == len(n)-1 {
			return usageError("--node must be NAME=HOST:PORT")
		}
		if _, twice := given[n[:i]]; twice {
			return usageError("--node names a node twice")
		}
		given[n[:i]] = n[i+1:]
	}
	if len(given) > 0 && spec.Addresses == nil {
		spec.Addresses = map[string]string{}
	}
	maps.Copy(spec.Addresses, given)
	if changed("port") {
		spec.Port = &k.port
	}
	if changed("weight") {
		spec.Weight = &k.weight
	}
	return k.layOverChannel(spec, changed)
}

func (k *clusterFlags) layOverChannel(spec *client.ClusterSpec, changed func(string) bool) error {
	if !slices.ContainsFunc([]string{"channel", "channel-url", "channel-credential", "topic"}, changed) {
		return nil
	}
	if spec.Channel == nil {
		spec.Channel = &client.ChannelSpec{}
	}
	ch := spec.Channel
	if changed("channel") {
		ch.Kind = k.channel
	}
	if ch.Kind == "" {
		return usageError("--channel-url, --channel-credential and --topic need --channel")
	}
	if changed("channel-url") {
		ch.URL = k.channelURL
	}
	if changed("channel-credential") {
		ch.Credential = k.channelCredential
	}
	if changed("topic") {
		ch.Topic = k.channelTopic
	}
	return nil
}

func (a *app) clusterList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the broker clusters", Args: cobra.NoArgs}
	return a.clientCommand(cmd, func(ctx context.Context, cl *client.Client, _ []string) error {
		clusters, err := cl.Clusters(ctx)
		if err != nil {
			return err
		}
		if a.output == outputJSON {
			return a.printJSON(client.ClusterList{Items: clusters})
		}
		var rows [][]string
		for _, c := range clusters {
			rows = append(rows, []string{
				c.Name, c.Spec.Driver, number(c.Nodes), number(c.Devices), optional(c.Spec.Weight), channelOf(c.Spec), strings.Join(c.Spec.ManagementURLs, " "),
			})
		}
		return a.printTable([]string{"NAME", "DRIVER", "NODES", "DEVICES", "WEIGHT", "CHANNEL", "URL"}, rows)
	})
}

func (a *app) clusterShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show NAME", Short: "Show a broker cluster with its nodes", Args: cobra.ExactArgs(1),
		Long:              "Show a broker cluster with its nodes. With --output json the cluster alone; `turnout cluster node list` has the nodes.",
		ValidArgsFunction: a.completeCluster(0),
	}
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		cluster, err := cl.Cluster(ctx, args[0])
		if err != nil {
			return err
		}
		if a.output == outputJSON {
			return a.printJSON(cluster)
		}
		nodes, err := cl.Nodes(ctx, args[0])
		if err != nil {
			return err
		}
		if err := a.printFields(clusterFields(cluster)); err != nil {
			return err
		}
		fmt.Fprintln(a.stdout)
		return a.printNodes(nodes)
	})
}

func clusterFields(c client.Cluster) []field {
	s := c.Spec
	fields := []field{
		{"name", c.Name}, {"driver", s.Driver}, {"management urls", strings.Join(s.ManagementURLs, " ")}, {"credential", s.Credential},
		{"poll seconds", optional(s.PollSeconds)}, {"remove after", optional(s.RemoveAfter)}, {"port", optional(s.Port)}, {"weight", optional(s.Weight)},
		{"devices", number(c.Devices)}, {"version", number(c.Version)}, {"channel", channelOf(s)},
	}
	if c.Trouble != "" {
		fields = append(fields, field{"trouble", c.Trouble})
	}
	if ch := s.Channel; ch != nil && ch.Kind != "" {
		fields = append(fields,
			field{"channel url", ch.URL}, field{"channel credential", ch.Credential}, field{"topic", ch.Topic}, field{"qos", optional(ch.QoS)},
			field{"expiry seconds", optional(ch.ExpirySeconds)}, field{"max bytes", optional(ch.MaxBytes)})
	}
	return fields
}

func channelOf(s client.ClusterSpec) string {
	if s.Channel == nil {
		return ""
	}
	return s.Channel.Kind
}

func (a *app) clusterRemove() *cobra.Command {
	c := &cobra.Command{
		Use: "remove NAME", Short: "Remove a broker cluster that no device and no policy refers to", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeCluster(0),
	}
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		res, err := cl.DeleteCluster(ctx, args[0], w.options())
		if err != nil {
			return err
		}
		return a.printWrite(res, fmt.Sprintf("cluster %s removed", cell(args[0])))
	})
}
