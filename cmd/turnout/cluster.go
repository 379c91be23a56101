package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

func (a *app) clusterCommand() *cobra.Command {
	return group("cluster", "Broker clusters and their nodes",
		a.clusterAdd(), a.clusterList(), a.clusterShow(), a.clusterRemove(), a.clusterNodeCommand())
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
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		spec, err := k.spec(c.Flags().Changed)
		if err != nil {
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

// spec makes the API's object of the flags; changed reports whether a flag was given.
func (k *clusterFlags) spec(changed func(string) bool) (client.ClusterSpec, error) {
	spec := client.ClusterSpec{Driver: k.driver, ManagementURLs: k.urls, Credential: k.credential}
	if spec.Driver == "" && len(k.urls) == 0 && len(k.nodes) > 0 {
		spec.Driver = "static"
	}
	for _, n := range k.nodes {
		// A node name may hold '=', an address never does.
		i := strings.LastIndexByte(n, '=')
		if i < 1 || i == len(n)-1 {
			return spec, usageError("--node must be NAME=HOST:PORT")
		}
		if spec.Addresses == nil {
			spec.Addresses = map[string]string{}
		}
		if _, twice := spec.Addresses[n[:i]]; twice {
			return spec, usageError("--node names a node twice")
		}
		spec.Addresses[n[:i]] = n[i+1:]
	}
	if changed("port") {
		spec.Port = &k.port
	}
	if changed("weight") {
		spec.Weight = &k.weight
	}
	if k.channel == "" && slices.ContainsFunc([]string{"channel-url", "channel-credential", "topic"}, changed) {
		return spec, usageError("--channel-url, --channel-credential and --topic need --channel")
	}
	if k.channel != "" {
		spec.Channel = &client.ChannelSpec{Kind: k.channel, URL: k.channelURL, Credential: k.channelCredential, Topic: k.channelTopic}
	}
	return spec, nil
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
