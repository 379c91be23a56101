//go:build integration

package integration

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"turnout/api/client"
	"turnout/test/harness"
)

// TestDevicesThroughLoadBalancer is a day of an operator and of devices with firmware that nobody can change.
func TestDevicesThroughLoadBalancer(t *testing.T) {
	w := newWorld(t)
	port := strconv.Itoa(w.mqtt)

	// Unknown device under the default policy: not authorised, in the client's own version.
	if out, err := w.run("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-V", "311", "-i", "stranger", "-t", "x", "-m", "y"); err == nil || !strings.Contains(out, "not authorised") {
		t.Errorf("3.1.1 stranger: %v %q, want not authorised", err, out)
	}
	if out, err := w.run("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-V", "5", "-i", "stranger", "-t", "x", "-m", "y"); err == nil || !strings.Contains(strings.ToLower(out), "not authorized") {
		t.Errorf("5.0 stranger: %v %q, want Not authorized", err, out)
	}

	// Assigned by CLI through the load balancer; subscriber and publisher meet at their node of their cluster.
	for _, id := range []string{"sub-1", "pub-1"} {
		w.turnout("device", "assign", id, "west", "--pin", "west-2", "--wait", "all")
	}
	sub := w.listen("-i", "sub-1", "-t", "meters/#", "-q", "1")
	sub.waitFor(w, "SUBACK")
	for _, version := range []string{"31", "311", "5"} {
		if out, err := w.run("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-V", map[string]string{"31": "mqttv31", "311": "mqttv311", "5": "mqttv5"}[version], "-i", "pub-1", "-t", "meters/1", "-m", "by-"+version, "-q", "1"); err != nil {
			t.Fatalf("publish with %s: %v %s", version, err, out)
		}
		sub.waitFor(w, "by-"+version)
	}
	if home := w.homeOf("pub-1"); home.name != "west-2" {
		t.Errorf("pub-1 was on %s, it is pinned to west-2", home.name)
	}

	// A command from the cloud, by CLI, through the channel of the home cluster. Over MQTT 5 mosquitto says when nobody is subscribed.
	if _, err := w.admin.PutDevice(w.ctx, "valve-7", client.DevicePut{Cluster: "east"}, client.WriteOptions{WaitAll: true}); err != nil {
		t.Fatal(err)
	}
	early := "too early"
	if r, err := w.admin.SendCommand(w.ctx, "valve-7", client.Command{Payload: &early}); err != nil || r.Outcome != "no_subscriber" {
		t.Errorf("command before the device ever connected: %+v %v, want no_subscriber", r, err)
	}
	valve := w.listen("-i", "valve-7", "-t", "devices/valve-7/commands", "-q", "1", "-V", "mqttv5")
	valve.waitFor(w, "SUBACK")
	if out := w.turnout("device", "command", "valve-7", "--payload", "open"); !strings.Contains(out, "accepted") {
		t.Errorf("command: %q, mosquitto does not tell, so it should be accepted", out)
	}
	valve.waitFor(w, "open")

	// Plain mosquitto_sub sends an empty client identifier: routed by policy, recorded nowhere.
	w.turnout("policy", "set", "cluster", "east", "--wait", "all")
	before, err := w.admin.Status(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	nobody := w.listen("-t", "#")
	nobody.waitFor(w, "SUBACK")
	if err := nobody.Kill9(); err != nil {
		t.Fatal(err)
	}

	// Paho, 200 reconnects each through the load balancer: one node for ever.
	for i := range 6 {
		id := fmt.Sprintf("paho-%d", i)
		if _, err := w.admin.PutDevice(w.ctx, id, client.DevicePut{Cluster: []string{"west", "east"}[i%2]}, client.WriteOptions{WaitAll: true}); err != nil {
			t.Fatal(err)
		}
		for range 200 {
			d, err := harness.ConnectDevice(w.ctx, harness.DeviceOptions{Address: loopback(w.mqtt), ClientID: id, Version: []byte{4, 5}[i/2%2], CleanStart: true})
			if err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			d.Disconnect()
		}
		w.eventually("the broker's log of "+id, func() (bool, string) {
			n := w.homeOf(id).seen(t, id)
			return n == 200, fmt.Sprintf("%d CONNECTs", n)
		})
		if home := w.homeOf(id); !strings.HasPrefix(home.name, []string{"west", "east"}[i%2]) {
			t.Errorf("%s was on %s", id, home.name)
		}
	}
	after, err := w.admin.Status(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if want := before.Devices + 6; after.Devices != want {
		t.Errorf("%d devices recorded, want %d: the empty client identifier must not be", after.Devices, want)
	}
	for _, verb := range [][]string{{"status"}, {"cluster", "list"}, {"cluster", "show", "west"}, {"device", "list", "--cluster", "west"}, {"device", "get", "pub-1"}, {"device", "route", "pub-1"}, {"gateway", "list"}} {
		if out := w.turnout(verb...); strings.TrimSpace(out) == "" {
			t.Errorf("turnout %s printed nothing", strings.Join(verb, " "))
		}
	}
}

// TestKilledLeaderLosesNoWrite kills the leader with SIGKILL under a stream of assignments while devices connect all the while.
func TestKilledLeaderLosesNoWrite(t *testing.T) {
	w := newWorld(t)
	if _, err := w.admin.PutDevice(w.ctx, "steady", client.DevicePut{Cluster: "west"}, client.WriteOptions{WaitAll: true}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var mu sync.Mutex
	acknowledged := map[string]string{}
	connects, refusals := 0, 0
	for worker := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id, cluster := fmt.Sprintf("dev-%d-%d", worker, i), []string{"west", "east"}[i%2]
				_, err := w.admin.PutDevice(w.ctx, id, client.DevicePut{Cluster: cluster}, client.WriteOptions{})
				mu.Lock()
				if err == nil {
					acknowledged[id] = cluster
				} else {
					refusals++
				}
				mu.Unlock()
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			// A device tries again when its gateway dies under it; the second try meets another gateway.
			err := w.tryConnect("steady")
			if err != nil {
				err = w.tryConnect("steady")
			}
			mu.Lock()
			connects++
			mu.Unlock()
			if err != nil {
				t.Errorf("a device was turned away twice in a row: %v", err)
			}
		}
	})
	enough := func(n int) {
		w.eventually(fmt.Sprintf("%d more acknowledged writes", n), func() (bool, string) {
			mu.Lock()
			defer mu.Unlock()
			return len(acknowledged) >= n, fmt.Sprint(len(acknowledged))
		})
	}
	enough(100)
	for range 3 {
		leader := w.leader()
		if err := leader.process.Kill9(); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		mu.Lock()
		have := len(acknowledged)
		mu.Unlock()
		enough(have + 50)
		t.Logf("%s killed; 50 writes later after %s", leader.name, time.Since(killed).Round(time.Millisecond))
		leader.start(w)
		leader.waitReady(w)
	}
	close(stop)
	wg.Wait()
	t.Logf("%d writes acknowledged, %d answered with an error, %d connects", len(acknowledged), refusals, connects)
	for _, g := range w.gateways {
		w.eventually("every acknowledged write on "+g.name, func() (bool, string) {
			stored := map[string]string{}
			for d, err := range g.client.Devices(w.ctx, client.DeviceQuery{Prefix: "dev-"}) {
				if err != nil {
					return false, err.Error()
				}
				stored[d.Key] = d.Cluster
			}
			for id, cluster := range acknowledged {
				if stored[id] != cluster {
					return false, fmt.Sprintf("%s is in %q, acknowledged was %q", id, stored[id], cluster)
				}
			}
			return true, ""
		})
	}
	if home := w.homeOf("steady"); !strings.HasPrefix(home.name, "west") {
		t.Errorf("steady was on %s", home.name)
	}
}

func (w *world) tryConnect(id string) error {
	d, err := harness.ConnectDevice(w.ctx, harness.DeviceOptions{Address: loopback(w.mqtt), ClientID: id, CleanStart: true})
	if err != nil {
		return err
	}
	d.Disconnect()
	return nil
}

// TestRestartOfEverything stops all three gateways, two of them with SIGKILL, and starts them again: the same tables.
func TestRestartOfEverything(t *testing.T) {
	w := newWorld(t)
	var lines strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&lines, "{\"key\":\"bulk-%04d\",\"cluster\":%q}\n", i, []string{"west", "east"}[i%2])
	}
	r, err := w.admin.ImportDevices(w.ctx, strings.NewReader(lines.String()), client.WriteOptions{WaitAll: true})
	if err != nil || r.Accepted != 5000 || r.LastCommittedLine != 5000 {
		t.Fatalf("import: %+v %v", r, err)
	}
	before := w.sameTables()
	for i, g := range w.gateways {
		if i == 0 {
			err = g.process.Stop(w.ctx)
		} else {
			err = g.process.Kill9()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range w.gateways {
		g.start(w)
	}
	for _, g := range w.gateways {
		g.waitReady(w)
	}
	after := w.sameTables()
	if before.Checksum != after.Checksum || before.Devices != after.Devices {
		t.Errorf("before: %s, %d devices; after: %s, %d devices", before.Checksum, before.Devices, after.Checksum, after.Devices)
	}
}

func (w *world) sameTables() client.Status {
	w.t.Helper()
	var all []client.Status
	w.eventually("the same tables everywhere", func() (bool, string) {
		all = all[:0]
		for _, g := range w.gateways {
			s, err := g.client.Status(w.ctx)
			if err != nil {
				return false, err.Error()
			}
			all = append(all, s)
		}
		return !slices.ContainsFunc(all, func(s client.Status) bool { return s.Index != all[0].Index || s.Checksum != all[0].Checksum }), fmt.Sprint(all)
	})
	return all[0]
}

// TestBrokerNodeStopsAndComesBack stops a mosquitto that stays a member: its devices work on the other node and go home again.
func TestBrokerNodeStopsAndComesBack(t *testing.T) {
	w := newWorld(t)
	const id = "lock-93"
	if _, err := w.admin.PutDevice(w.ctx, id, client.DevicePut{Cluster: "west"}, client.WriteOptions{WaitAll: true}); err != nil {
		t.Fatal(err)
	}
	if err := w.tryConnect(id); err != nil {
		t.Fatal(err)
	}
	var home *broker
	w.eventually("the broker's log", func() (bool, string) {
		for _, b := range w.brokers["west"] {
			if b.seen(t, id) > 0 {
				home = b
				return true, ""
			}
		}
		return false, "no line yet"
	})
	if err := home.server.Kill9(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := w.tryConnect(id); err != nil {
			t.Fatalf("home node down: %v", err)
		}
	}
	before := home.seen(t, id)
	home.start(w)
	w.eventually("the device to be home", func() (bool, string) {
		if err := w.tryConnect(id); err != nil {
			return false, err.Error()
		}
		return home.seen(t, id) > before, "it is elsewhere"
	})
	// Both brokers down: server unavailable, not a hang.
	for _, b := range w.brokers["west"] {
		if err := b.server.Kill9(); err != nil {
			t.Fatal(err)
		}
	}
	var refused *harness.RefusedError
	if err := w.tryConnect(id); !errors.As(err, &refused) || refused.Code != 3 {
		t.Errorf("no usable node: %v, want server unavailable", err)
	}
}
