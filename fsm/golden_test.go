package fsm

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew; never for a format that was released")

// golden has one command of every kind with every field set. Its entries lie in testdata: later versions must read them.
func golden() []Command {
	spec := ClusterSpec{
		Driver: DriverEMQX, ManagementURLs: []string{"https://10.20.7.1:18083", "https://10.20.7.2:18083"}, Credential: "file:/run/secrets/emqx",
		PollSeconds: 5, RemoveAfter: 12, Port: 1883, Addresses: map[NodeName]string{"emqx@10.20.7.31": "10.20.8.31:1884", "emqx@10.20.7.32": "[2001:db8::1]:1883"},
		Weight: 3, Ring: RingSpec{Algorithm: RingAlgorithm1, Partitions: 4093, Replication: 40, LoadPercent: 125},
		Channel: ChannelSpec{Kind: ChannelMQTT, URL: "mqtts://10.20.7.9:8883", Credential: "env:CHANNEL", Topic: "devices/{key}/commands", QoS: 1, ExpirySeconds: 60, MaxBytes: 65536},
	}
	return []Command{
		initCommand(),
		&PutCluster{Name: "west", Spec: spec, IfVersion: ptr(uint64(0))},
		&RemoveCluster{Name: "east", IfVersion: ptr(uint64(1 << 40))},
		&UpdateNodes{Cluster: "west", Upsert: []NodeChange{
			{Name: "emqx@10.20.7.31", Address: "10.20.8.31:1884", State: NodeUp}, {Name: "emqx@10.20.7.32", State: NodeDown}, {Name: "emqx@10.20.7.33", State: NodeSuspect},
		}, IfNodesVersion: ptr(uint64(2))},
		&SetNode{Cluster: "west", Node: "emqx@10.20.7.32", Draining: true, IfVersion: ptr(uint64(4))},
		&PutDevices{Changes: []DeviceChange{
			{Key: "pump/Ü 1", Cluster: ptr(ClusterName("west")), Pin: ptr(NodeName("emqx@10.20.7.31")), PinStrict: ptr(true), IfVersion: ptr(uint64(0))},
			{Key: "pump/2", Cluster: ptr(ClusterName("")), Pin: ptr(NodeName("")), PinStrict: ptr(false), Blocked: ptr(true)},
			{Key: "pump/3"},
		}},
		&RemoveDevices{Keys: []DeviceKey{"pump/3"}, IfVersion: ptr(uint64(6))},
		&Bind{Bindings: []Binding{{Key: "pump/Ü 1", Cluster: 1, Node: 1}, {Key: "pump/4", Cluster: 1, Node: 3}, {Key: "pump/5", Cluster: 1 << 31, Node: 1<<32 - 1}}},
		&PutSettings{Identity: ptr("{username}/{client_id}"), Unknown: &Policy{Kind: PolicyCluster, Cluster: "west"}, Force: true, IfVersion: ptr(uint64(1))},
		&PutGateway{Gateway: Gateway{ID: "7b1d0a52-5b0e-4a52-9d5f-0a3d4f4e9a11", Name: "gw-1", Zone: "a", PeerAddress: "gw-1.turnout:7400", APIAddress: "gw-1.turnout:8080", Release: "v0.1.0"}},
		&RemoveGateway{ID: "00000000-0000-4000-8000-000000000000"},
		&NoteDiscovery{Cluster: "west", Trouble: "polls fail: unauthorized"},
	}
}

func goldenFile(t *testing.T, name string, got func() []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoldenEntries(t *testing.T) {
	for i, c := range golden() {
		if c.Kind() != Kind(i+1) {
			t.Fatalf("%T has kind %d, its number is %d", c, c.Kind(), i+1)
		}
		name := fmt.Sprintf("entry-v1-%02d-%s.hex", c.Kind(), strings.TrimPrefix(fmt.Sprintf("%T", c), "*fsm."))
		t.Run(name, func(t *testing.T) {
			data, err := Encode(c)
			if err != nil {
				t.Fatal(err)
			}
			text := goldenFile(t, name, func() []byte { return []byte(hex.EncodeToString(data) + "\n") })
			stored, err := hex.DecodeString(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			got, err := Decode(stored)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c, got, cmp.AllowUnexported(Binding{})); d != "" {
				t.Fatal(d)
			}
			if !bytes.Equal(stored, data) {
				t.Fatalf("now encoded as\n%x, stored\n%x", data, stored)
			}
		})
	}
	if newCommand(Kind(len(golden())+1)) != nil {
		t.Fatal("there is a kind without a golden entry")
	}
}

// TestGoldenSnapshot reads a stored snapshot. How it is compressed may change, what comes out may not.
func TestGoldenSnapshot(t *testing.T) {
	w := newWorld(t)
	for _, c := range golden() {
		w.do(c) // some are refused, which is part of it
	}
	stored := goldenFile(t, "snapshot-v1.bin", func() []byte { return snapshot(t, w.Tables) })
	text := goldenFile(t, "snapshot-v1.txt", func() []byte {
		return fmt.Appendf(nil, "index %d checksum %s\n", w.Index(), w.Status().Checksum)
	})
	got := restored(t, stored)
	if is := fmt.Sprintf("index %d checksum %s\n", got.Index(), got.Status().Checksum); is != string(text) {
		t.Fatalf("restored to %swant %s", is, text)
	}
	same(t, w.Tables, got)
	if s := got.Status(); s.Devices != 3 || len(got.Topology().Clusters) != 1 || len(got.Topology().Gateways) != 1 {
		t.Fatalf("the golden tables hold little: %+v", s)
	}
}
