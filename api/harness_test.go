package api_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"turnout/api"
	"turnout/api/client"
	"turnout/fsm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// proposer applies commands to real tables, as a cluster of one would.
type proposer struct {
	tables *fsm.Tables

	mu      sync.Mutex // guards everything below
	index   uint64
	fail    func(fsm.Command) error // before the apply
	lagging []fsm.GatewayID
	waitErr error
}

func (p *proposer) Propose(_ context.Context, cmd fsm.Command) (fsm.Result, error) {
	entry, err := fsm.Encode(cmd)
	if err != nil {
		return fsm.Result{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		if err := p.fail(cmd); err != nil {
			return fsm.Result{}, err
		}
	}
	p.index++
	res := p.tables.Apply(&raft.Log{Index: p.index, Type: raft.LogCommand, Data: entry}).(fsm.Result)
	return res, res.Err()
}

func (p *proposer) WaitAll(context.Context, uint64) ([]fsm.GatewayID, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lagging, p.waitErr
}

func (p *proposer) failWith(f func(fsm.Command) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = f
}

type peers struct{ status api.PeerStatus }

func (p *peers) Status() api.PeerStatus { return p.status }

// router answers with what it was asked, and with the cluster that policy names when it was asked for a key alone.
type router struct {
	mu     sync.Mutex
	got    api.ExplainRequest
	policy fsm.ClusterName
}

func (r *router) Explain(req api.ExplainRequest) api.Explanation {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = req
	ex := api.Explanation{Reason: "assigned", Cluster: "west", Recorded: true, Index: 7, Nodes: []api.ExplainNode{
		{Node: fsm.Node{ID: 1, Name: "w1", Address: "10.0.0.1:1883", State: fsm.NodeUp}, Reason: "ring"},
	}}
	if req.ClientID != nil {
		key := fsm.DeviceKey(*req.ClientID)
		ex.DerivedKey = &key
	} else {
		ex.Cluster = r.policy
	}
	return ex
}

type commander struct {
	mu  sync.Mutex
	to  api.Target
	got api.Command
}

func (c *commander) Send(_ context.Context, to api.Target, cmd api.Command) api.Outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.to, c.got = to, cmd
	return api.Outcome{Outcome: "dispatched", Detail: "one subscriber", Node: to.Node.Name}
}

// logBuffer is a log that tests read while the server writes.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rig is an API over real tables with everything around it faked.
type rig struct {
	*api.API
	url       string
	log       *logBuffer
	tables    *fsm.Tables
	proposer  *proposer
	peers     *peers
	router    *router
	commander *commander
	ready     []string
}

const (
	readToken    = "read-3bd1c9f0a7"
	operateToken = "operate-77aa01c2"
	adminToken   = "admin-2f0e9d8c7b"
	adminToken2  = "admin-rotated-11"
	secret       = "s3cr3t-of-the-tables-0123456789"
)

// newRig builds and opens an API on loopback. change may alter its options.
func newRig(t *testing.T, change ...func(*api.Options)) *rig {
	t.Helper()
	tables := fsm.New()
	g := &rig{
		log: &logBuffer{}, tables: tables, proposer: &proposer{tables: tables}, router: &router{}, commander: &commander{},
		peers: &peers{status: api.PeerStatus{
			ID: "gw-a", Name: "gateway-a", State: "leader", Leader: "gw-a", Term: 3, CommitIndex: 9, AppliedIndex: 9,
			Members: []api.PeerMember{{ID: "gw-a", Role: api.PeerVoter, Liveness: "alive"}, {ID: "gw-b", Role: api.PeerNonvoter, Liveness: "failed"}},
		}},
	}
	logger := slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	registry := prometheus.NewRegistry()
	o := api.Options{
		Config: api.DefaultConfig(), Tables: tables, Proposer: g.proposer, Peers: g.peers, Router: g.router, Commander: g.commander,
		Ready: func() []string { return g.ready }, Release: "1.2.3", Logger: logger, Registerer: registry, Gatherer: registry,
	}
	o.Config.Address = "127.0.0.1:0"
	for _, f := range change {
		f(&o)
	}
	g.must(t, &fsm.Init{Settings: fsm.Settings{
		ClusterID: "c-1", Secret: []byte(secret), Identity: "{client_id}", Unknown: fsm.Policy{Kind: fsm.PolicyRefuse},
	}})
	for _, id := range []fsm.GatewayID{"gw-a", "gw-b", "gw-c"} {
		g.must(t, &fsm.PutGateway{Gateway: fsm.Gateway{ID: id, Name: string(id), PeerAddress: "127.0.0.1:7400"}})
	}
	a, err := api.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := a.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	g.API, g.url = a, "http://"+a.Addr().String()
	return g
}

// withTokens gives the API a tokens file with one token of each role and a second admin's.
func withTokens(t *testing.T) func(*api.Options) {
	path := writeFile(t, "tokens.yaml", tokensYAML())
	return func(o *api.Options) { o.Config.TokensFile = path }
}

func tokensYAML() string {
	var b strings.Builder
	for _, row := range [][3]string{{"dashboard", "read", readToken}, {"fleet", "operate", operateToken}, {"ops", "admin", adminToken}, {"ops", "admin", adminToken2}} {
		b.WriteString("- {name: " + row[0] + ", role: " + row[1] + ", sha256: " + client.HashToken(row[2]) + "}\n")
	}
	return b.String()
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// must applies a command past the API.
func (g *rig) must(t *testing.T, cmd fsm.Command) fsm.Result {
	t.Helper()
	res, err := g.proposer.Propose(t.Context(), cmd)
	if err != nil {
		t.Fatalf("propose %T: %v", cmd, err)
	}
	return res
}

func (g *rig) client(t *testing.T, token string) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{URL: g.url, Token: token, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// west adds the cluster west with two static nodes.
func (g *rig) west(t *testing.T) {
	t.Helper()
	spec := fsm.DefaultSpec()
	spec.Driver = fsm.DriverStatic
	spec.Addresses = map[fsm.NodeName]string{"w1": "10.0.0.1:1883", "w2": "10.0.0.2:1883"}
	g.must(t, &fsm.PutCluster{Name: "west", Spec: spec})
	g.must(t, &fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{
		{Name: "w1", Address: "10.0.0.1:1883", State: fsm.NodeUp}, {Name: "w2", Address: "10.0.0.2:1883", State: fsm.NodeUp},
	}})
}

// call is one raw request.
type call struct {
	method, path, body, token string
	header                    http.Header
}

// do sends a raw request and returns status, header and body. The path goes out as it is.
func (g *rig) do(t *testing.T, c call) (int, http.Header, string) {
	t.Helper()
	var body *strings.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	var req *http.Request
	if body != nil {
		req = httptest.NewRequest(c.method, c.path, body)
		req.Header.Set("Content-Type", "application/json")
	} else {
		req = httptest.NewRequest(c.method, c.path, nil)
	}
	req.Host = "localhost"
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	rec := httptest.NewRecorder()
	g.Handler().ServeHTTP(rec, req)
	return rec.Code, rec.Header(), rec.Body.String()
}

func ptr[T any](v T) *T { return &v }
