package harness

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
)

func TestClusterNamesAndOverrides(t *testing.T) {
	c := startCluster(t, "west", 2)
	want := map[string]string{
		"west-1@127.0.0.1": c.Nodes()[0].Address(),
		"west-2@127.0.0.1": c.Nodes()[1].Address(),
	}
	if got := c.Overrides(); !maps.Equal(got, want) {
		t.Errorf("overrides %v, want %v", got, want)
	}
	must(t, c.RemoveNode("west-2@127.0.0.1"))
	n, err := c.AddNode()
	must(t, err)
	if n.Name() != "west-3@127.0.0.1" {
		t.Errorf("a name was used again: %s", n.Name())
	}
	if err := c.RemoveNode("west-2@127.0.0.1"); !errors.Is(err, ErrUnknownNode) {
		t.Errorf("removing a removed node: %v", err)
	}
	if len(c.Nodes()) != 2 || c.Node("west-2@127.0.0.1") != nil || c.Node("west-3@127.0.0.1") != n {
		t.Error("membership is wrong")
	}
}

func TestClusterTakesOverAcrossNodes(t *testing.T) {
	c := startCluster(t, "west", 2)
	nodes := c.Nodes()
	for _, version := range []byte{3, 4, 5} {
		for _, to := range []*Broker{nodes[1], nodes[0]} { // another node, and the same node
			id := fmt.Sprintf("d%d-%s", version, to.Name())
			first := connect(t, DeviceOptions{Address: nodes[0].Address(), ClientID: id, Version: version, CleanStart: true})
			second := connect(t, DeviceOptions{Address: to.Address(), ClientID: id, Version: version, CleanStart: true})
			<-first.Done()
			if code, ok := first.ServerDisconnect(); version == 5 && (!ok || code != 0x8E) {
				t.Errorf("%s: DISCONNECT 0x%02x %v, want session taken over", id, code, ok)
			}
			if info, ok := c.Client(id); !ok || info.Node != to.Name() || !info.Connected {
				t.Errorf("%s: cluster says %+v", id, info)
			}
			must(t, second.Publish(testContext(t), Message{Topic: "alive", Payload: []byte("1"), QoS: 1}))
		}
	}
}

func TestClusterSessionFollowsItsClient(t *testing.T) {
	c := startCluster(t, "west", 2)
	a, b := c.Nodes()[0], c.Nodes()[1]
	for _, version := range []byte{4, 5} {
		for _, live := range []bool{false, true} { // the old connection is gone, or is taken over
			id := fmt.Sprintf("p%d-%v", version, live)
			o := DeviceOptions{Address: a.Address(), ClientID: id, Version: version, SessionExpiry: 3600, Subscribe: []string{"to/" + id}}
			d := connect(t, o)
			if !live {
				d.Kill()
				eventually(t, "the session is offline", func() bool { info, ok := c.Client(id); return ok && !info.Connected })
				matched, err := c.Publish(Message{Topic: "to/" + id, Payload: []byte("queued"), QoS: 1})
				if err != nil || matched != 1 {
					t.Fatalf("%s: matched %d, error %v", id, matched, err)
				}
			}
			o.Address, o.Subscribe = b.Address(), nil
			d = connect(t, o)
			if !d.SessionPresent() {
				t.Errorf("%s: no session on the other node", id)
			}
			if !live {
				_, err := d.Await(testContext(t), func(m Message) bool { return string(m.Payload) == "queued" })
				must(t, err)
			}
			matched, err := c.Publish(Message{Topic: "to/" + id, Payload: []byte("now"), QoS: 1})
			if err != nil || matched != 1 {
				t.Errorf("%s: matched %d, error %v", id, matched, err)
			}
			_, err = d.Await(testContext(t), func(m Message) bool { return string(m.Payload) == "now" })
			must(t, err)

			o.Address, o.CleanStart = a.Address(), true
			if d := connect(t, o); d.SessionPresent() {
				t.Errorf("%s: clean start found a session", id)
			}
			if matched, _ := c.Publish(Message{Topic: "to/" + id, QoS: 1}); matched != 0 {
				t.Errorf("%s: subscription survived a clean start", id)
			}
		}
	}
}

func TestClusterSessionEndsWithAConnectionThatAskedForIt(t *testing.T) {
	c := startCluster(t, "west", 2)
	for _, o := range []DeviceOptions{{ClientID: "v4", Version: 4, CleanStart: true}, {ClientID: "v5", Version: 5}} {
		o.Address, o.Subscribe = c.Nodes()[0].Address(), []string{"x"}
		connect(t, o).Kill()
		eventually(t, o.ClientID+" is forgotten", func() bool { _, ok := c.Client(o.ClientID); return !ok })
		o.Address, o.CleanStart, o.Subscribe = c.Nodes()[1].Address(), false, nil
		if d := connect(t, o); d.SessionPresent() {
			t.Errorf("%s: session present", o.ClientID)
		}
	}
}

func TestClusterForwardsMessagesOnce(t *testing.T) {
	c := startCluster(t, "west", 3)
	nodes := c.Nodes()
	var subs []*Device
	for i, n := range nodes {
		subs = append(subs, connect(t, DeviceOptions{
			Address: n.Address(), ClientID: fmt.Sprintf("sub%d", i), Version: 5, CleanStart: true, Subscribe: []string{"up/#", "end"},
		}))
	}
	pub := connect(t, DeviceOptions{Address: nodes[1].Address(), ClientID: "pub", CleanStart: true})
	for i := range 10 {
		must(t, pub.Publish(testContext(t), Message{Topic: "up/t", Payload: []byte{byte(i)}, QoS: 1}))
	}
	must(t, pub.Publish(testContext(t), Message{Topic: "end", QoS: 1}))
	for i, s := range subs {
		_, err := s.Await(testContext(t), func(m Message) bool { return m.Topic == "end" })
		must(t, err)
		if got := len(s.Received()); got != 11 {
			t.Errorf("subscriber %d received %d messages, want 11", i, got)
		}
	}
	for i, n := range nodes {
		want := 0
		if i == 1 {
			want = 11
		}
		if got := len(n.Messages()); got != want {
			t.Errorf("node %d recorded %d messages, want %d", i, got, want)
		}
	}
}

func TestClusterRetainedMessageReachesANewNode(t *testing.T) {
	c := startCluster(t, "west", 1)
	pub := connect(t, DeviceOptions{Address: c.Nodes()[0].Address(), ClientID: "pub", CleanStart: true})
	must(t, pub.Publish(testContext(t), Message{Topic: "state", Payload: []byte("kept"), QoS: 1, Retain: true}))
	n, err := c.AddNode()
	must(t, err)
	sub := connect(t, DeviceOptions{Address: n.Address(), ClientID: "sub", CleanStart: true, Subscribe: []string{"state"}})
	m, err := sub.Await(testContext(t), func(Message) bool { return true })
	must(t, err)
	if !m.Retain || string(m.Payload) != "kept" {
		t.Errorf("message %+v", m)
	}
}

func TestClusterKick(t *testing.T) {
	c := startCluster(t, "west", 2)
	b := c.Nodes()[1]
	for _, version := range []byte{4, 5} {
		id := fmt.Sprintf("k%d", version)
		d := connect(t, DeviceOptions{
			Address: b.Address(), ClientID: id, Version: version, SessionExpiry: 60, Subscribe: []string{"x"},
			Will: &Message{Topic: "will/" + id, Payload: []byte("off")},
		})
		if !c.Kick(id) {
			t.Fatalf("%s was not found", id)
		}
		<-d.Done()
		if code, ok := d.ServerDisconnect(); version == 5 && (!ok || code != 0x98) {
			t.Errorf("DISCONNECT 0x%02x %v, want administrative action", code, ok)
		}
		if _, ok := c.Client(id); ok || c.Kick(id) {
			t.Errorf("%s: the session survived the kick", id)
		}
		if !slices.ContainsFunc(b.Wills(), func(m Message) bool { return m.ClientID == id && m.Topic == "will/"+id }) {
			t.Errorf("%s: no Will", id)
		}
	}
}

func TestClusterStoppedNodeIsSkipped(t *testing.T) {
	c := startCluster(t, "west", 2)
	a, b := c.Nodes()[0], c.Nodes()[1]
	sub := connect(t, DeviceOptions{Address: a.Address(), ClientID: "sub", CleanStart: true, Subscribe: []string{"x"}})
	must(t, b.Stop())
	if matched, err := c.Publish(Message{Topic: "x", Payload: []byte("1")}); err != nil || matched != 1 {
		t.Fatalf("matched %d, error %v", matched, err)
	}
	_, err := sub.Await(testContext(t), func(Message) bool { return true })
	must(t, err)
	must(t, a.Stop())
	if _, err := c.Publish(Message{Topic: "x"}); !errors.Is(err, ErrStopped) {
		t.Errorf("publishing with no node running gave %v", err)
	}
}

// TestClusterSurvivesAReconnectStorm lets several connections fight for one name over all nodes. In the end exactly
// one holds it, and it is served.
func TestClusterSurvivesAReconnectStorm(t *testing.T) {
	c := startCluster(t, "west", 3)
	nodes := c.Nodes()
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			for round := range 15 {
				d, err := ConnectDevice(testContext(t), DeviceOptions{
					Address: nodes[(worker+round)%3].Address(), ClientID: "fought-over", Version: byte(4 + worker%2), SessionExpiry: 60,
				})
				if err != nil {
					t.Errorf("worker %d: %v", worker, err)
					return
				}
				d.Kill()
			}
		})
	}
	wg.Wait()
	last := connect(t, DeviceOptions{Address: nodes[0].Address(), ClientID: "fought-over", Version: 5, Subscribe: []string{"x"}})
	if matched, err := c.Publish(Message{Topic: "x", Payload: []byte("1"), QoS: 1}); err != nil || matched != 1 {
		t.Errorf("matched %d, error %v", matched, err)
	}
	_, err := last.Await(testContext(t), func(m Message) bool { return m.Topic == "x" })
	must(t, err)
	total := 0
	for _, count := range c.SeenOn("fought-over") {
		total += count
	}
	if total != 91 {
		t.Errorf("the nodes saw %d connections, want 91", total)
	}
	for _, n := range nodes[1:] {
		if len(n.Connected()) != 0 {
			t.Errorf("%s still holds %v", n.Name(), n.Connected())
		}
	}
}

func TestClusterTakeoverSaysNothingToA311Client(t *testing.T) {
	c := startCluster(t, "west", 2)
	for _, to := range c.Nodes() {
		old := dialRaw(t, c.Nodes()[0].Address())
		write(t, old, string(connect311))
		readExactly(t, old, 4)
		connect(t, DeviceOptions{Address: to.Address(), ClientID: "m-0417", CleanStart: true})
		if rest, _ := io.ReadAll(old); len(rest) != 0 {
			t.Errorf("bytes % x after CONNACK, want a plain close", rest)
		}
	}
}
