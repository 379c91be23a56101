package main

import (
	"context"
	"fmt"
	"time"

	"turnout/api/client"
	"turnout/test/harness"
)

// step is one act of the demo; it returns an error unless what its title says was seen to hold.
type step struct {
	title string
	run   func(*world, context.Context) error
}

var steps = []step{
	{"Three gateways found a cluster", (*world).found},
	{"The operator adds two broker clusters by URL; their nodes are discovered", (*world).addClusters},
	{"The operator assigns 24 devices, 12 to each cluster", (*world).assign},
	{"The devices connect over the three gateways", (*world).connectAll},
	{"Each device gets a command through its home cluster", (*world).command},
	{"The devices reconnect through another gateway and return to their node", (*world).reconnect},
	{"A broker node stops: its devices work on the other node", (*world).stopBroker},
	{"The node is back: its devices go home", (*world).startBroker},
	{"The leading gateway stops: devices still connect, writes work again", (*world).stopLeader},
}

func (w *world) found(ctx context.Context) error {
	if err := w.fleet.Start(ctx); err != nil {
		return err
	}
	leader, err := w.fleet.Leader(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(w.out, "   %s leads\n", leader.Name)
	return nil
}

func (w *world) addClusters(ctx context.Context) error {
	for _, s := range w.sites {
		poll := uint32(1)
		_, err := w.operator().PutCluster(ctx, s.name, client.ClusterSpec{
			Driver: "emqx", ManagementURLs: []string{s.api.URL()}, Credential: "file:" + w.credential, PollSeconds: &poll,
			Addresses: s.cluster.Overrides(), Channel: &client.ChannelSpec{Kind: "emqx"},
		}, client.WriteOptions{WaitAll: true})
		if err != nil {
			return err
		}
		err = harness.Eventually(ctx, "the nodes of "+s.name, func() (bool, string) {
			nodes, err := w.operator().Nodes(ctx, s.name)
			if err != nil {
				return false, err.Error()
			}
			return len(nodes) == 2, fmt.Sprintf("%d nodes", len(nodes))
		})
		if err != nil {
			return err
		}
		nodes, err := w.operator().Nodes(ctx, s.name)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			fmt.Fprintf(w.out, "   %s: %s at %s is %s\n", s.name, n.Name, n.Address, n.State)
		}
	}
	return nil
}

func (w *world) assign(ctx context.Context) error {
	for i, u := range w.units {
		r, err := w.via(i).API().PutDevice(ctx, u.id, client.DevicePut{Cluster: u.site.name}, client.WriteOptions{WaitAll: true})
		if err != nil {
			return err
		}
		if len(r.Lagging) > 0 {
			return fmt.Errorf("%d gateways have not applied the assignment of %s", len(r.Lagging), u.id)
		}
	}
	fmt.Fprintf(w.out, "   %d devices assigned and applied on every gateway\n", len(w.units))
	return nil
}

func (w *world) connectAll(ctx context.Context) error {
	for i, u := range w.units {
		if err := w.connect(ctx, u, w.via(i)); err != nil {
			return err
		}
		node, err := u.where()
		if err != nil {
			return err
		}
		u.node = node
		if w.strayed(u) {
			return fmt.Errorf("%s was seen in a cluster that is not its own", u.id)
		}
	}
	if err := w.table(); err != nil {
		return err
	}
	return w.bound(ctx)
}

// bound waits until the tables have recorded for each device the node on which its broker saw it.
func (w *world) bound(ctx context.Context) error {
	return harness.Eventually(ctx, "the bindings", func() (bool, string) {
		for _, u := range w.units {
			d, err := w.operator().Device(ctx, u.id)
			if err != nil {
				return false, err.Error()
			}
			if d.Binding.String() != u.node {
				return false, fmt.Sprintf("%s is bound to %q, the brokers saw it on %q", u.id, d.Binding.String(), u.node)
			}
		}
		return true, ""
	})
}

func (w *world) command(ctx context.Context) error {
	for i, u := range w.units {
		text := "blink " + u.id
		r, err := w.via(i).API().SendCommand(ctx, u.id, client.Command{Payload: &text})
		if err != nil {
			return err
		}
		if r.Outcome != "dispatched" {
			return fmt.Errorf("command for %s: %s (%s)", u.id, r.Outcome, r.Detail)
		}
		if _, err := u.conn.Await(ctx, func(m harness.Message) bool { return string(m.Payload) == text }); err != nil {
			return fmt.Errorf("command for %s: dispatched, but it did not arrive: %w", u.id, err)
		}
	}
	fmt.Fprintf(w.out, "   %d commands dispatched, and every one arrived\n", len(w.units))
	return nil
}

func (w *world) reconnect(ctx context.Context) error {
	for i, u := range w.units {
		if err := w.connect(ctx, u, w.via(i+1)); err != nil {
			return err
		}
		if seen := u.site.cluster.SeenOn(u.id); len(seen) != 1 || seen[u.node] == 0 {
			return fmt.Errorf("%s should have seen %s alone, its cluster recorded %v", u.id, u.node, seen)
		}
	}
	return w.table()
}

func (w *world) stopBroker(ctx context.Context) error {
	west := w.sites[0]
	victim := west.cluster.Nodes()[0]
	if err := victim.Stop(); err != nil {
		return err
	}
	fmt.Fprintf(w.out, "   %s is stopped\n", victim.Name())
	moved := 0
	for i, u := range w.units {
		if u.site != west || u.node != victim.Name() {
			continue
		}
		if err := w.connect(ctx, u, w.via(i)); err != nil {
			return err
		}
		node, err := u.where()
		if err != nil {
			return err
		}
		if node == victim.Name() {
			return fmt.Errorf("%s is still on the stopped node", u.id)
		}
		moved++
	}
	fmt.Fprintf(w.out, "   %d devices found their way to the other node\n", moved)
	return w.table()
}

func (w *world) startBroker(ctx context.Context) error {
	back := w.sites[0].cluster.Nodes()[0]
	if err := back.Start(); err != nil {
		return err
	}
	for i, u := range w.units {
		if u.node != back.Name() {
			continue
		}
		err := harness.Eventually(ctx, u.id+" to be home", func() (bool, string) {
			if err := w.connect(ctx, u, w.via(i)); err != nil {
				return false, err.Error()
			}
			node, err := u.where()
			if err != nil {
				return false, err.Error()
			}
			return node == u.node, "it is on " + node
		})
		if err != nil {
			return err
		}
	}
	return w.table()
}

func (w *world) stopLeader(ctx context.Context) error {
	leader, err := w.fleet.Leader(ctx)
	if err != nil {
		return err
	}
	if err := leader.Stop(ctx); err != nil {
		return err
	}
	stopped := time.Now()
	fmt.Fprintf(w.out, "   %s, the leader, is stopped\n", leader.Name)
	for i, u := range w.units { // without waiting for an election
		if err := w.connect(ctx, u, w.via(i)); err != nil {
			return err
		}
		node, err := u.where()
		if err != nil {
			return err
		}
		if node != u.node {
			return fmt.Errorf("%s is on %s, its node is %s", u.id, node, u.node)
		}
	}
	fmt.Fprintf(w.out, "   %d devices connected through the other two, each to its node\n", len(w.units))
	err = harness.Eventually(ctx, "a write", func() (bool, string) {
		blocked := true
		_, err := w.operator().PatchDevice(ctx, "stolen-meter", client.DevicePatch{Blocked: &blocked}, client.WriteOptions{})
		if err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(w.out, "   a write was acknowledged %.1f s after the stop\n", time.Since(stopped).Seconds())
	if err := leader.Start(ctx); err != nil {
		return err
	}
	if err := w.fleet.WaitReady(ctx); err != nil {
		return err
	}
	fmt.Fprintf(w.out, "   %s is back\n", leader.Name)
	return w.table()
}
