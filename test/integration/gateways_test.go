//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"turnout/api/client"
	"turnout/test/harness"
)

// binary is the product as `make build` leaves it; the path may be set for a binary that is elsewhere.
func binary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("TURNOUT_TEST_BINARY")
	if path == "" {
		path = filepath.Join("..", "..", "bin", "turnout")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no turnout binary, run make build first: %v", err)
	}
	return path
}

// gateway is one `turnout serve` process. It can be killed and started again with the same ports and data.
type gateway struct {
	name, config string
	mqtt, api    int
	client       *client.Client
	log          *syncBuffer
	process      *harness.Process
	path         string
}

// syncBuffer collects the log of a process.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// world is the scene of every test here: gateways behind HAProxy, before two mosquitto clusters of two.
type world struct {
	t        *testing.T
	ctx      context.Context
	dir      string
	gateways []*gateway
	brokers  map[string][]*broker // by cluster
	mqtt     int                  // HAProxy's port for devices
	admin    *client.Client       // through HAProxy's port for the admin API
	adminURL string
}

type broker struct {
	name   string
	opts   harness.MosquittoOptions
	server *harness.MosquittoServer
}

const limit = 4 * time.Minute

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx, dir: t.TempDir(), brokers: map[string][]*broker{}}
	ports, err := harness.FreePorts(4 + 3*4 + 2)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"west-1", "west-2", "east-1", "east-2"} {
		dir := filepath.Join(w.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		b := &broker{name: name, opts: harness.MosquittoOptions{Port: ports[i], Dir: dir}}
		b.start(w)
		w.brokers[name[:4]] = append(w.brokers[name[:4]], b)
	}
	w.startGateways(ports[4:16])
	w.startHAProxy(ports[16], ports[17])
	for cluster, brokers := range w.brokers {
		addresses := map[string]string{}
		for _, b := range brokers {
			addresses[b.name] = loopback(b.opts.Port)
		}
		_, err := w.admin.PutCluster(ctx, cluster, client.ClusterSpec{
			Driver: "static", Addresses: addresses, Channel: &client.ChannelSpec{Kind: "mqtt"},
		}, client.WriteOptions{WaitAll: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range w.gateways {
			w.eventually("nodes of "+cluster+" on "+g.name, func() (bool, string) {
				nodes, err := g.client.Nodes(ctx, cluster)
				return len(nodes) == 2, fmt.Sprint(nodes, err)
			})
		}
	}
	return w
}

func (b *broker) start(w *world) {
	w.t.Helper()
	m, err := harness.Mosquitto(w.ctx, b.opts)
	if err != nil {
		w.t.Fatal(err)
	}
	b.server = m
	w.t.Cleanup(func() { _ = m.Kill9() })
}

// seen counts the CONNECTs of a device that this broker's own log shows.
func (b *broker) seen(t *testing.T, id string) int {
	t.Helper()
	all, err := b.server.ClientsSeen()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range all {
		if c == id {
			n++
		}
	}
	return n
}

func (w *world) startGateways(ports []int) {
	w.t.Helper()
	path := binary(w.t)
	var join []string
	for i := range 3 {
		join = append(join, loopback(ports[i*4+3]))
	}
	for i := range 3 {
		p := ports[i*4:]
		g := &gateway{name: fmt.Sprintf("gw-%d", i+1), mqtt: p[0], api: p[1], log: &syncBuffer{}, path: path}
		g.config = filepath.Join(w.dir, g.name+".yaml")
		text := fmt.Sprintf(`name: %s
data_dir: %s
listeners:
  - {name: mqtt, address: "%s"}
api: {address: "%s"}
peer: {address: "%s", gossip_address: "%s", join: [%s], expect: 3}
upstream: {allow: ["127.0.0.0/8"]}
`, g.name, filepath.Join(w.dir, g.name), loopback(p[0]), loopback(p[1]), loopback(p[2]), loopback(p[3]), strings.Join(quoted(join), ", "))
		if err := os.WriteFile(g.config, []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
		cl, err := client.New(client.Options{URL: "http://" + loopback(g.api), Timeout: 10 * time.Second})
		if err != nil {
			w.t.Fatal(err)
		}
		g.client = cl
		w.gateways = append(w.gateways, g)
		g.start(w)
	}
	w.t.Cleanup(func() {
		for _, g := range w.gateways {
			_ = g.process.Kill9()
			if w.t.Failed() {
				w.t.Logf("log of %s:\n%s", g.name, g.log)
			}
		}
	})
	for _, g := range w.gateways {
		g.waitReady(w)
	}
}

func quoted(list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, strconv.Quote(s))
	}
	return out
}

func (g *gateway) start(w *world) {
	w.t.Helper()
	p, err := harness.StartProcess(w.ctx, harness.ProcessOptions{Path: g.path, Args: []string{"serve", "--config", g.config}, Log: g.log})
	if err != nil {
		w.t.Fatal(err)
	}
	g.process = p
}

func (g *gateway) waitReady(w *world) {
	w.t.Helper()
	w.eventually(g.name+" to be ready", func() (bool, string) {
		select {
		case <-g.process.Exited():
			w.t.Fatalf("%s ended: %v\n%s", g.name, g.process.ExitError(), g.log)
		default:
		}
		r, err := g.client.Ready(w.ctx)
		return err == nil && r.Ready, fmt.Sprint(r, err)
	})
}

func (w *world) startHAProxy(mqtt, api int) {
	w.t.Helper()
	var devices, admins []string
	for _, g := range w.gateways {
		devices = append(devices, loopback(g.mqtt))
		admins = append(admins, loopback(g.api))
	}
	dir := filepath.Join(w.dir, "haproxy")
	if err := os.Mkdir(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	p, err := harness.HAProxyTCP(w.ctx, harness.HAProxyOptions{Dir: dir, Frontends: []harness.HAProxyFrontend{
		{Port: mqtt, Backends: devices}, {Port: api, Backends: admins},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = p.Kill9() })
	w.mqtt, w.adminURL = mqtt, "http://"+loopback(api)
	if w.admin, err = client.New(client.Options{URL: w.adminURL, Timeout: 15 * time.Second}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) eventually(what string, cond func() (bool, string)) {
	w.t.Helper()
	if err := harness.Eventually(w.ctx, what, cond); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) leader() *gateway {
	w.t.Helper()
	var found *gateway
	w.eventually("a leader", func() (bool, string) {
		for _, g := range w.gateways {
			if s, err := g.client.Status(w.ctx); err == nil && s.State == "leader" {
				found = g
				return true, ""
			}
		}
		return false, "no gateway leads"
	})
	return found
}

// run runs a program of the outside world and returns what it printed and how it ended.
func (w *world) run(name string, args ...string) (string, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// turnout runs the CLI against the admin port of the load balancer.
func (w *world) turnout(args ...string) string {
	w.t.Helper()
	out, err := w.run(w.gateways[0].path, append([]string{"--url", w.adminURL}, args...)...)
	if err != nil {
		w.t.Fatalf("turnout %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// homeOf returns the one broker that has seen the device; the test fails when there is none or another.
func (w *world) homeOf(id string) *broker {
	w.t.Helper()
	var home *broker
	for _, brokers := range w.brokers {
		for _, b := range brokers {
			if b.seen(w.t, id) == 0 {
				continue
			}
			if home != nil {
				w.t.Fatalf("%s was seen on %s and on %s", id, home.name, b.name)
			}
			home = b
		}
	}
	if home == nil {
		w.t.Fatalf("no broker has seen %s", id)
	}
	return home
}

// listener is a mosquitto_sub that prints what arrives.
type listener struct {
	*harness.Process
	out *syncBuffer
}

func (w *world) listen(args ...string) *listener {
	w.t.Helper()
	stdbuf, err := exec.LookPath("stdbuf") // of coreutils: without a terminal mosquitto_sub would keep its lines to itself
	if err != nil {
		w.t.Fatal(err)
	}
	out := &syncBuffer{}
	args = append([]string{"-oL", "mosquitto_sub", "-h", "127.0.0.1", "-p", strconv.Itoa(w.mqtt), "-d"}, args...)
	p, err := harness.StartProcess(w.ctx, harness.ProcessOptions{Path: stdbuf, Args: args, Log: out})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = p.Kill9() })
	return &listener{p, out}
}

// waitFor waits until the listener has printed text.
func (l *listener) waitFor(w *world, text string) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("mosquitto_sub to print %q", text), func() (bool, string) {
		select {
		case <-l.Exited():
			w.t.Fatalf("mosquitto_sub ended: %v\n%s", l.ExitError(), l.out)
		default:
		}
		return strings.Contains(l.out.String(), text), l.out.String()
	})
}

// isRefused reports whether the API refused a write in a way that says that it was not written.
func isRefused(err error) bool {
	var p *client.Problem
	return errors.As(err, &p) && p.Code == "no_leader"
}
