package fsm

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// refused checks that an error is a CodeInvalid about the field, and that it does not repeat what was given.
func refused(t *testing.T, err error, field string, item int) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeInvalid || e.Field != field || e.Item != item || e.Message == "" {
		t.Fatalf("refused with %+v, want field %q item %d", err, field, item)
	}
	if strings.Contains(err.Error(), "s3cret") {
		t.Fatalf("the refusal repeats a value: %v", err)
	}
}

func TestValidateSpec(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	emqx := func() ClusterSpec {
		s := DefaultSpec()
		s.ManagementURLs = []string{"https://10.0.0.1:18083"}
		s.Channel.Kind = ChannelEMQX
		return s
	}
	for _, tc := range []struct {
		name  string
		edit  func(*ClusterSpec)
		field string // "" for a good spec
	}{
		{"as it is", func(*ClusterSpec) {}, ""},
		{"driver", func(s *ClusterSpec) { s.Driver = "s3cret" }, "driver"},
		{"no management URL", func(s *ClusterSpec) { s.ManagementURLs = nil }, "management_urls"},
		{"17 management URLs", func(s *ClusterSpec) { s.ManagementURLs = make([]string, 17) }, "management_urls"},
		{"second URL", func(s *ClusterSpec) { s.ManagementURLs = append(s.ManagementURLs, "ftp://x") }, "management_urls[1]"},
		{"URL with a password", func(s *ClusterSpec) { s.ManagementURLs[0] = "http://u:s3cret@h/" }, "management_urls[0]"},
		{"URL without host", func(s *ClusterSpec) { s.ManagementURLs[0] = "http:///s3cret" }, "management_urls[0]"},
		{"URL with query", func(s *ClusterSpec) { s.ManagementURLs[0] = "http://h/?key=s3cret" }, "management_urls[0]"},
		{"URL with fragment", func(s *ClusterSpec) { s.ManagementURLs[0] = "http://h/#s3cret" }, "management_urls[0]"},
		{"no URL", func(s *ClusterSpec) { s.ManagementURLs[0] = "http://h:s3cret/%zz" }, "management_urls[0]"},
		{"URL with port 0", func(s *ClusterSpec) { s.ManagementURLs[0] = "http://h:0" }, "management_urls[0]"},
		{"URL with a port too high", func(s *ClusterSpec) { s.ManagementURLs[0] = "http://h:65536" }, "management_urls[0]"},
		{"URL not UTF-8", func(s *ClusterSpec) { s.ManagementURLs[0] = "http://h/\xff" }, "management_urls[0]"},
		{"URL at its bound", func(s *ClusterSpec) { s.ManagementURLs[0] = "http://h/" + long(MaxURLBytes-9) }, ""},
		{"URL over its bound", func(s *ClusterSpec) { s.ManagementURLs[0] = "http://h/" + long(MaxURLBytes-8) }, "management_urls[0]"},
		{"credential from a file", func(s *ClusterSpec) { s.Credential = "file:/run/key" }, ""},
		{"credential from the environment", func(s *ClusterSpec) { s.Credential = "env:KEY" }, ""},
		{"literal credential", func(s *ClusterSpec) { s.Credential = "key:s3cret" }, "credential"},
		{"empty reference", func(s *ClusterSpec) { s.Credential = "env:" }, "credential"},
		{"relative file", func(s *ClusterSpec) { s.Credential = "file:s3cret" }, "credential"},
		{"credential not UTF-8", func(s *ClusterSpec) { s.Credential = "env:\xff" }, "credential"},
		{"credential too long", func(s *ClusterSpec) { s.Credential = "env:" + long(1021) }, "credential"},
		{"poll 0", func(s *ClusterSpec) { s.PollSeconds = 0 }, "poll_seconds"},
		{"poll 3601", func(s *ClusterSpec) { s.PollSeconds = 3601 }, "poll_seconds"},
		{"remove after 1", func(s *ClusterSpec) { s.RemoveAfter = 1 }, "remove_after"},
		{"remove after 1001", func(s *ClusterSpec) { s.RemoveAfter = 1001 }, "remove_after"},
		{"port 0", func(s *ClusterSpec) { s.Port = 0 }, "port"},
		{"weight 0", func(s *ClusterSpec) { s.Weight = 0 }, ""},
		{"weight", func(s *ClusterSpec) { s.Weight = 1_000_001 }, "weight"},
		{"200 addresses", func(s *ClusterSpec) { s.Addresses = addresses(MaxClusterNodes) }, ""},
		{"201 addresses", func(s *ClusterSpec) { s.Addresses = addresses(MaxClusterNodes + 1) }, "addresses"},
		{"IPv6 address", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{"n": "[::1]:1883"} }, ""},
		{"address without port", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{"n": "s3cret"} }, "addresses"},
		{"address without host", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{"n": ":1883"} }, "addresses"},
		{"address with a port of any length", func(s *ClusterSpec) {
			s.Addresses = map[NodeName]string{"n": "s3cret:" + strings.Repeat("0", 1000) + "1883"}
		}, "addresses"},
		{"address with port 0", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{"n": "s3cret:0"} }, "addresses"},
		{"address with a name for port", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{"n": "h:s3cret"} }, "addresses"},
		{"address with a control character", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{"n": "s3\x00cret:1"} }, "addresses"},
		{"address with a space", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{"n": "s3 cret:1"} }, "addresses"},
		{"address not UTF-8", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{"n": "\xff:1"} }, "addresses"},
		{"address with a long host", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{"n": long(256) + ":1"} }, "addresses"},
		{"node without name", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{"": "h:1"} }, "addresses"},
		{"node with a long name", func(s *ClusterSpec) { s.Addresses = map[NodeName]string{NodeName(long(256)): "h:1"} }, "addresses"},
		{"static without nodes", func(s *ClusterSpec) { s.Driver, s.Channel.Kind = DriverStatic, "" }, "addresses"},

		{"ring algorithm", func(s *ClusterSpec) { s.Ring.Algorithm = 2 }, "ring.algorithm"},
		{"few partitions", func(s *ClusterSpec) { s.Ring.Partitions = 20*MaxClusterNodes - 1 }, "ring.partitions"},
		{"many partitions", func(s *ClusterSpec) { s.Ring.Partitions = 65537 }, "ring.partitions"},
		{"no replication", func(s *ClusterSpec) { s.Ring.Replication = 0 }, "ring.replication"},
		{"much replication", func(s *ClusterSpec) { s.Ring.Replication = 1001 }, "ring.replication"},
		{"low load", func(s *ClusterSpec) { s.Ring.LoadPercent = 109 }, "ring.load_percent"},
		{"high load", func(s *ClusterSpec) { s.Ring.LoadPercent = 201 }, "ring.load_percent"},

		{"channel left out", func(s *ClusterSpec) { s.Channel = ChannelSpec{} }, ""},
		{"channel kind", func(s *ClusterSpec) { s.Channel.Kind = "s3cret" }, "channel.kind"},
		{"literal credential of a channel", func(s *ClusterSpec) { s.Channel.Credential = "u:s3cret" }, "channel.credential"},
		{"literal credential of no channel", func(s *ClusterSpec) { s.Channel = ChannelSpec{Credential: "u:s3cret"} }, "channel.credential"},
		{"URL of no channel", func(s *ClusterSpec) { s.Channel = ChannelSpec{URL: "http://u:s3cret@h"} }, "channel.url"},
		{"topic of no channel", func(s *ClusterSpec) { s.Channel = ChannelSpec{Topic: "#"} }, "channel.topic"},
		{"URL of a channel", func(s *ClusterSpec) { s.Channel.URL = "mqtt://h" }, "channel.url"},
		{"MQTT channel to the device's node", func(s *ClusterSpec) { s.Channel.Kind = ChannelMQTT }, ""},
		{"MQTT channel", func(s *ClusterSpec) { s.Channel.Kind, s.Channel.URL = ChannelMQTT, "mqtts://h:8883" }, ""},
		{"MQTT channel over HTTP", func(s *ClusterSpec) { s.Channel.Kind, s.Channel.URL = ChannelMQTT, "http://h" }, "channel.url"},
		{"EMQX channel of a static cluster", func(s *ClusterSpec) { s.Driver, s.Addresses = DriverStatic, addresses(1) }, "channel.url"},
		{"EMQX channel of a static cluster with URL", func(s *ClusterSpec) {
			s.Driver, s.Addresses, s.Channel.URL = DriverStatic, addresses(1), "http://h:18083"
		}, ""},
		{"no topic", func(s *ClusterSpec) { s.Channel.Topic = "" }, "channel.topic"},
		{"topic without key", func(s *ClusterSpec) { s.Channel.Topic = "s3cret" }, "channel.topic"},
		{"topic with wildcard", func(s *ClusterSpec) { s.Channel.Topic = "+/{key}" }, "channel.topic"},
		{"topic with NUL", func(s *ClusterSpec) { s.Channel.Topic = "\x00{key}" }, "channel.topic"},
		{"topic too long", func(s *ClusterSpec) { s.Channel.Topic = "{key}" + long(1020) }, "channel.topic"},
		{"QoS 2", func(s *ClusterSpec) { s.Channel.QoS = 2 }, "channel.qos"},
		{"payload of 0", func(s *ClusterSpec) { s.Channel.MaxBytes = 0 }, "channel.max_bytes"},
		{"payload over 1 MiB", func(s *ClusterSpec) { s.Channel.MaxBytes = 1<<20 + 1 }, "channel.max_bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := emqx()
			tc.edit(&s)
			c := &PutCluster{Name: "west", Spec: s}
			if tc.field != "" {
				refused(t, c.Validate(), tc.field, -1)
				if _, err := Encode(c); !errors.Is(err, ErrInvalid) {
					t.Fatalf("encoded all the same: %v", err)
				}
				return
			}
			decodes(t, c)
		})
	}
}

func addresses(n int) map[NodeName]string {
	m := map[NodeName]string{}
	for i := range n {
		m[NodeName(fmt.Sprintf("n%d", i))] = "10.0.0.1:1883"
	}
	return m
}

// decodes checks that a good command can be applied after it was encoded.
func decodes(t *testing.T, c Command) {
	t.Helper()
	data, err := Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(data); err != nil {
		t.Fatalf("what was encoded does not decode: %v", err)
	}
}

func TestValidateCommands(t *testing.T) {
	long := strings.Repeat("x", 256)
	settings := func(edit func(*Settings)) *Init {
		c := initCommand()
		edit(&c.Settings)
		return c
	}
	gateway := func(edit func(*Gateway)) *PutGateway {
		g := Gateway{ID: "id", Name: "gw", PeerAddress: "10.0.0.1:7400"}
		edit(&g)
		return &PutGateway{Gateway: g}
	}
	change := func(ch DeviceChange) *PutDevices {
		return &PutDevices{Changes: []DeviceChange{{Key: "good"}, ch}}
	}
	for _, tc := range []struct {
		name  string
		c     Command
		field string
		item  int
	}{
		{"init", initCommand(), "", 0},
		{"init without cluster id", settings(func(s *Settings) { s.ClusterID = "" }), "cluster_id", -1},
		{"init with a long cluster id", settings(func(s *Settings) { s.ClusterID = long }), "cluster_id", -1},
		{"init with a short secret", settings(func(s *Settings) { s.Secret = []byte("s3cret") }), "secret", -1},
		{"init with a long secret", settings(func(s *Settings) { s.Secret = make([]byte, 65) }), "secret", -1},
		{"init without identity", settings(func(s *Settings) { s.Identity = "" }), "identity", -1},
		{"init without policy", settings(func(s *Settings) { s.Unknown.Kind = "s3cret" }), "unknown.policy", -1},

		{"put cluster without name", &PutCluster{Spec: staticSpec("n")}, "name", -1},
		{"put cluster in capitals", &PutCluster{Name: "S3CRET", Spec: staticSpec("n")}, "name", -1},
		{"put cluster ending in a dash", &PutCluster{Name: "west-", Spec: staticSpec("n")}, "name", -1},
		{"put cluster of 63", &PutCluster{Name: ClusterName(long[:63]), Spec: staticSpec("n")}, "", 0},
		{"put cluster of 64", &PutCluster{Name: ClusterName(long[:64]), Spec: staticSpec("n")}, "name", -1},
		{"put cluster ending in a line", &PutCluster{Name: "west\n", Spec: staticSpec("n")}, "name", -1},
		{"remove cluster", &RemoveCluster{Name: "west"}, "", 0},
		{"remove cluster without name", &RemoveCluster{}, "name", -1},

		{"update nodes", &UpdateNodes{Cluster: "west", Upsert: up("n"), Remove: []NodeName{"m"}}, "", 0},
		{"update node without address", &UpdateNodes{Cluster: "west", Upsert: []NodeChange{{Name: "n", State: NodeDown}}}, "", 0},
		{"update nodes of no cluster", &UpdateNodes{Upsert: up("n")}, "name", -1},
		{"update too many nodes", &UpdateNodes{Cluster: "west", Remove: make([]NodeName, 2*MaxClusterNodes+1)}, "nodes", -1},
		{"update node without name", &UpdateNodes{Cluster: "west", Upsert: up("n", "")}, "nodes[1].name", -1},
		{"update node with a long name", &UpdateNodes{Cluster: "west", Upsert: up("n", NodeName(long))}, "nodes[1].name", -1},
		{"update node with a bad address", &UpdateNodes{Cluster: "west", Upsert: []NodeChange{{Name: "n", State: NodeUp, Address: "s3cret"}}}, "nodes[0].address", -1},
		{"update node without state", &UpdateNodes{Cluster: "west", Upsert: []NodeChange{{Name: "n"}}}, "nodes[0].state", -1},
		{"update node with an unknown state", &UpdateNodes{Cluster: "west", Upsert: []NodeChange{{Name: "n", State: 4}}}, "nodes[0].state", -1},
		{"remove node not UTF-8", &UpdateNodes{Cluster: "west", Remove: []NodeName{"\xff"}}, "remove[0]", -1},
		{"set node", &SetNode{Cluster: "west", Node: "n", Draining: true}, "", 0},
		{"set node of no cluster", &SetNode{Node: "n"}, "name", -1},
		{"set node without name", &SetNode{Cluster: "west"}, "node", -1},
		{"set node not UTF-8", &SetNode{Cluster: "west", Node: "\xff"}, "node", -1},

		{"put devices", change(DeviceChange{Key: "k", Cluster: ptr(ClusterName("")), Pin: ptr(NodeName(""))}), "", 0},
		{"put no device", &PutDevices{}, "devices", -1},
		{"put too many devices", &PutDevices{Changes: make([]DeviceChange, MaxBatch+1)}, "devices", -1},
		{"put device without key", change(DeviceChange{}), "key", 1},
		{"put device with a key of 256", change(DeviceChange{Key: DeviceKey(long)}), "", 0},
		{"put device with a key of 257", change(DeviceChange{Key: DeviceKey(long + "x")}), "key", 1},
		{"put device with a key not UTF-8", change(DeviceChange{Key: "\xff"}), "key", 1},
		{"put device with any text for key", change(DeviceChange{Key: "a/\x00 ü\u2028"}), "", 0},
		{"put device in no cluster's name", change(DeviceChange{Key: "k", Cluster: ptr(ClusterName("S3CRET"))}), "cluster", 1},
		{"put device on no node's name", change(DeviceChange{Key: "k", Pin: ptr(NodeName("\x00"))}), "pin", 1},
		{"remove devices", &RemoveDevices{Keys: []DeviceKey{"k"}}, "", 0},
		{"remove no device", &RemoveDevices{}, "keys", -1},
		{"remove too many devices", &RemoveDevices{Keys: make([]DeviceKey, MaxBatch+1)}, "keys", -1},
		{"remove device without key", &RemoveDevices{Keys: []DeviceKey{"k", ""}}, "key", 1},
		{"remove device with a key not UTF-8", &RemoveDevices{Keys: []DeviceKey{"\xff"}}, "key", 0},

		{"bind", &Bind{Bindings: []Binding{{Key: "k", Cluster: 1, Node: 1}}}, "", 0},
		{"bind nothing", &Bind{}, "bindings", -1},
		{"bind too much", &Bind{Bindings: make([]Binding, MaxBatch+1)}, "bindings", -1},
		{"bind without key", &Bind{Bindings: []Binding{{Key: "k"}, {}}}, "key", 1},

		{"no settings", &PutSettings{}, "", 0},
		{"put settings", &PutSettings{Identity: ptr("{username}"), Unknown: &Policy{Kind: PolicyWeighted}}, "", 0},
		{"put empty identity", &PutSettings{Identity: ptr("")}, "identity", -1},
		{"put long identity", &PutSettings{Identity: ptr(long + "x")}, "identity", -1},
		{"policy", &PutSettings{Unknown: &Policy{Kind: "s3cret"}}, "unknown.policy", -1},
		{"policy without its cluster", &PutSettings{Unknown: &Policy{Kind: PolicyCluster}}, "unknown.cluster", -1},
		{"policy with a cluster it does not use", &PutSettings{Unknown: &Policy{Kind: PolicyRefuse, Cluster: "west"}}, "unknown.cluster", -1},

		{"put gateway", gateway(func(g *Gateway) { g.Zone, g.APIAddress, g.Release = "a", "10.0.0.1:8080", "v0.1.0" }), "", 0},
		{"put gateway without id", gateway(func(g *Gateway) { g.ID = "" }), "id", -1},
		{"put gateway with a long id", gateway(func(g *Gateway) { g.ID = GatewayID(long) }), "id", -1},
		{"put gateway without name", gateway(func(g *Gateway) { g.Name = "" }), "name", -1},
		{"put gateway with a long zone", gateway(func(g *Gateway) { g.Zone = long }), "zone", -1},
		{"put gateway with an API address not UTF-8", gateway(func(g *Gateway) { g.APIAddress = "\xff" }), "api_address", -1},
		{"put gateway with control characters", gateway(func(g *Gateway) { g.Release = "\x1b[2J" }), "release", -1},
		{"put gateway without peer address", gateway(func(g *Gateway) { g.PeerAddress = "" }), "peer_address", -1},
		{"note discovery", &NoteDiscovery{Cluster: "west", Trouble: "polls fail"}, "", 0},
		{"note discovery, all well", &NoteDiscovery{Cluster: "west"}, "", 0},
		{"note discovery with a line end", &NoteDiscovery{Cluster: "west", Trouble: "a\nb"}, "trouble", -1},
		{"note discovery of no cluster", &NoteDiscovery{}, "name", -1},
		{"remove gateway", &RemoveGateway{ID: "id"}, "", 0},
		{"remove gateway without id", &RemoveGateway{}, "id", -1},
		{"remove gateway with a long id", &RemoveGateway{ID: GatewayID(long)}, "id", -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.field != "" {
				refused(t, tc.c.Validate(), tc.field, tc.item)
				return
			}
			decodes(t, tc.c)
		})
	}
}

func TestErrors(t *testing.T) {
	err := fmt.Errorf("propose command: %w", NewError(CodeNotFound, "name", "no such cluster"))
	if !errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid) || CodeOf(err) != CodeNotFound {
		t.Fatalf("codes of %v", err)
	}
	if CodeOf(nil) != CodeOK || CodeOf(errors.New("x")) != CodeUnknown || (Result{}).Err() != nil {
		t.Fatal("codes of nil and of a foreign error")
	}
	if errors.Is(NewError(CodeNotFound, "", "a"), NewError(CodeNotFound, "", "b")) {
		t.Fatal("two refusals with texts are not each other's sentinel")
	}
	if got := err.Error(); got != "propose command: not_found: name: no such cluster" {
		t.Fatalf("text %q", got)
	}
}
