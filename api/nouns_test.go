package api_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"turnout/api/client"
	"turnout/fsm"
)

// problemOf returns the problem in err, or fails.
func problemOf(t *testing.T, err error) *client.Problem {
	t.Helper()
	var p *client.Problem
	if !errors.As(err, &p) {
		t.Fatalf("want a problem, got %v", err)
	}
	return p
}

func wantProblem(t *testing.T, err error, status int, code, location string) {
	t.Helper()
	p := problemOf(t, err)
	if p.Status != status || p.Code != code || p.RequestID == "" || p.Type == "" || p.Title == "" || p.Detail == "" {
		t.Fatalf("want %d %s, got %+v", status, code, p)
	}
	if location != "" && (len(p.Errors) != 1 || p.Errors[0].Location != location || p.Errors[0].Message == "") {
		t.Fatalf("want location %s, got %+v", location, p.Errors)
	}
}

func ok[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestClusters(t *testing.T) {
	g, ctx := newRig(t), t.Context()
	c := g.client(t, "")
	spec := client.ClusterSpec{
		ManagementURLs: []string{"http://10.1.0.1:18083"}, Credential: "env:WEST", Port: ptr(uint16(1884)), Weight: ptr(uint32(0)),
		Addresses: map[string]string{"emqx@a/b": "10.1.0.1:1883"}, Channel: &client.ChannelSpec{Kind: "emqx", QoS: ptr(uint8(0))},
	}
	put, err := c.PutCluster(ctx, "west", spec, client.WriteOptions{IfNoneMatch: true})
	ok(t, put, err)
	if put.Index == 0 || put.Version != put.Index || put.Lagging != nil {
		t.Fatalf("unexpected result %+v", put)
	}
	_, err = c.PutCluster(ctx, "west", spec, client.WriteOptions{IfNoneMatch: true})
	wantProblem(t, err, 412, "conflict", "header.If-None-Match")
	got, err := c.Cluster(ctx, "west")
	ok(t, got, err)
	if got.Version != put.Version || *got.Spec.Port != 1884 || *got.Spec.Weight != 0 || *got.Spec.PollSeconds != 5 ||
		got.Spec.Driver != "emqx" || *got.Spec.Channel.QoS != 0 || got.Spec.Channel.Topic == "" || got.Spec.Addresses["emqx@a/b"] != "10.1.0.1:1883" {
		t.Fatalf("unexpected cluster %+v", got)
	}
	// What GET gives, PUT takes, and it changes nothing.
	again, err := c.PutCluster(ctx, "west", got.Spec, client.WriteOptions{IfMatch: got.Version})
	ok(t, again, err)
	after, err := c.Cluster(ctx, "west")
	if diff := cmp.Diff(got.Spec, ok(t, after, err).Spec); diff != "" {
		t.Fatal(diff)
	}
	_, err = c.PutCluster(ctx, "west", spec, client.WriteOptions{IfMatch: got.Version})
	wantProblem(t, err, 412, "conflict", "header.If-Match")
	_, err = c.PutCluster(ctx, "West!", spec, client.WriteOptions{})
	wantProblem(t, err, 422, "invalid", "path.cluster")
	_, err = c.PutCluster(ctx, "east", client.ClusterSpec{Driver: "static"}, client.WriteOptions{})
	wantProblem(t, err, 422, "invalid", "body.addresses")
	_, err = c.Cluster(ctx, "east")
	wantProblem(t, err, 404, "not_found", "path.cluster")

	ok(t, 0, errOf(c.PutDevice(ctx, "d1", client.DevicePut{Cluster: "west"}, client.WriteOptions{})))
	_, err = c.DeleteCluster(ctx, "west", client.WriteOptions{})
	wantProblem(t, err, 409, "in_use", "path.cluster")
	ok(t, 0, errOf(c.DeleteDevice(ctx, "d1", client.WriteOptions{})))
	_, err = c.DeleteCluster(ctx, "west", client.WriteOptions{IfMatch: 1})
	wantProblem(t, err, 412, "conflict", "")
	ok(t, 0, errOf(c.DeleteCluster(ctx, "west", client.WriteOptions{IfMatch: again.Version})))
	items, err := c.Clusters(ctx)
	if len(ok(t, items, err)) != 0 || items == nil {
		t.Fatalf("want an empty list, got %#v", items)
	}
}

func errOf[T any](_ T, err error) error { return err }

func TestNodes(t *testing.T) {
	g, ctx := newRig(t), t.Context()
	g.west(t)
	g.must(t, &fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{{Name: "emqx@[::1]/x %2F", Address: "", State: fsm.NodeSuspect}}})
	c := g.client(t, "")
	nodes, err := c.Nodes(ctx, "west")
	if ok(t, nodes, err); len(nodes) != 3 || nodes[0].Name != "w1" || nodes[0].State != "up" || nodes[2].State != "suspect" {
		t.Fatalf("unexpected nodes %+v", nodes)
	}
	n, err := c.Node(ctx, "west", "emqx@[::1]/x %2F")
	ok(t, n, err)
	res, err := c.DrainNode(ctx, "west", n.Name, true, client.WriteOptions{IfMatch: n.Version})
	ok(t, res, err)
	_, err = c.DrainNode(ctx, "west", n.Name, false, client.WriteOptions{IfMatch: n.Version})
	wantProblem(t, err, 412, "conflict", "header.If-Match")
	if n, err = c.Node(ctx, "west", n.Name); !ok(t, n, err).Draining || n.Version != res.Version {
		t.Fatalf("unexpected node %+v", n)
	}
	_, err = c.DeleteNode(ctx, "west", n.Name, client.WriteOptions{IfMatch: 1})
	wantProblem(t, err, 412, "conflict", "")
	gone, err := c.DeleteNode(ctx, "west", n.Name, client.WriteOptions{IfMatch: n.Version})
	if ok(t, gone, err); gone.Version != 0 {
		t.Fatalf("a deleted node has version %d", gone.Version)
	}
	_, err = c.Node(ctx, "west", n.Name)
	wantProblem(t, err, 404, "not_found", "path.node")
	_, err = c.Nodes(ctx, "nowhere")
	wantProblem(t, err, 404, "not_found", "path.cluster")
	// A static node that the operator's own table still names would be back at the next poll.
	_, err = c.DeleteNode(ctx, "west", "w1", client.WriteOptions{})
	wantProblem(t, err, 409, "in_use", "path.node")
}

func TestPolicyAndSettings(t *testing.T) {
	g, ctx := newRig(t), t.Context()
	g.west(t)
	c := g.client(t, "")
	p, err := c.Policy(ctx)
	if ok(t, p, err); p.Policy != "refuse" || p.Version == 0 {
		t.Fatalf("unexpected policy %+v", p)
	}
	ok(t, 0, errOf(c.PutPolicy(ctx, client.PolicyPut{Policy: "cluster", Cluster: "west"}, client.WriteOptions{IfMatch: p.Version})))
	_, err = c.PutPolicy(ctx, client.PolicyPut{Policy: "weighted"}, client.WriteOptions{IfMatch: p.Version})
	wantProblem(t, err, 412, "conflict", "header.If-Match")
	_, err = c.PutPolicy(ctx, client.PolicyPut{Policy: "cluster", Cluster: "nowhere"}, client.WriteOptions{})
	wantProblem(t, err, 422, "invalid", "body.cluster")
	_, err = c.PutPolicy(ctx, client.PolicyPut{Policy: "coin"}, client.WriteOptions{})
	wantProblem(t, err, 422, "invalid", "body.policy")
	_, err = c.DeleteCluster(ctx, "west", client.WriteOptions{})
	wantProblem(t, err, 409, "in_use", "path.cluster")

	s, err := c.Settings(ctx)
	if ok(t, s, err); s.Identity != "{client_id}" || s.ClusterID != "c-1" {
		t.Fatalf("unexpected settings %+v", s)
	}
	ok(t, 0, errOf(c.PutDevice(ctx, "d1", client.DevicePut{Cluster: "west"}, client.WriteOptions{})))
	change := client.SettingsPatch{Identity: ptr("{username}/{client_id}")}
	_, err = c.PatchSettings(ctx, change, client.WriteOptions{})
	wantProblem(t, err, 409, "in_use", "body.identity")
	change.Force = true
	ok(t, 0, errOf(c.PatchSettings(ctx, change, client.WriteOptions{IfMatch: s.Version})))
	if s, err = c.Settings(ctx); ok(t, s, err).Identity != "{username}/{client_id}" {
		t.Fatalf("unexpected settings %+v", s)
	}
	_, err = c.PatchSettings(ctx, client.SettingsPatch{Force: true}, client.WriteOptions{})
	wantProblem(t, err, 422, "invalid", "body")
	if _, _, body := g.do(t, call{method: "GET", path: "/v1/settings"}); strings.Contains(body, "secret") || strings.Contains(body, secret) {
		t.Error("the settings show the secret")
	}
}

func TestGatewaysAndStatus(t *testing.T) {
	g, ctx := newRig(t), t.Context()
	c := g.client(t, "")
	list, err := c.Gateways(ctx)
	if ok(t, list, err); len(list) != 3 {
		t.Fatalf("unexpected roster %+v", list)
	}
	a, b, cc := list[0], list[1], list[2]
	if !a.Self || !a.Leader || a.Role != "voter" || a.Liveness != "alive" || b.Role != "nonvoter" || b.Liveness != "failed" || cc.Role != "none" || cc.Liveness != "unknown" {
		t.Fatalf("unexpected roster %+v", list)
	}
	_, err = c.DeleteGateway(ctx, "gw-b", client.WriteOptions{})
	wantProblem(t, err, 409, "in_use", "path.gateway")
	_, err = c.DeleteGateway(ctx, "gw-z", client.WriteOptions{})
	wantProblem(t, err, 404, "not_found", "path.gateway")
	_, err = c.DeleteGateway(ctx, "gw-c", client.WriteOptions{IfMatch: 1})
	wantProblem(t, err, 400, "bad_request", "header.If-Match")
	ok(t, 0, errOf(c.DeleteGateway(ctx, "gw-c", client.WriteOptions{})))

	st, err := c.Status(ctx)
	sum := g.tables.Status().Checksum
	want := client.Status{
		ID: "gw-a", Name: "gateway-a", Leader: "gw-a", State: "leader", Index: sum.Index, Checksum: sum.String(), Release: "1.2.3",
		Raft: client.RaftStatus{State: "leader", Term: 3, CommitIndex: 9, AppliedIndex: 9, Voters: 1, Nonvoters: 1},
	}
	if diff := cmp.Diff(want, ok(t, st, err)); diff != "" || len(st.Checksum) != 16 {
		t.Fatal(diff)
	}
}

func TestExplainAndCommand(t *testing.T) {
	g, ctx := newRig(t), t.Context()
	g.west(t)
	c := g.client(t, "")
	ex, err := c.Explain(ctx, "d 1", client.ExplainQuery{ClientID: ptr("")})
	if ok(t, ex, err); ex.Verdict != "route" || ex.Cluster != "west" || len(ex.Nodes) != 1 || ex.DerivedKey == nil || *ex.DerivedKey != "" {
		t.Fatalf("unexpected explanation %+v", ex)
	}
	if got := g.router.got; got.ClientID == nil || got.Username != nil {
		t.Fatalf("unexpected request %+v", got)
	}
	send := func(key string, cmd client.Command) (client.CommandResult, error) {
		return c.SendCommand(ctx, key, cmd)
	}
	_, err = send("d1", client.Command{Payload: ptr("on")})
	wantProblem(t, err, 404, "not_found", "path.key")
	ok(t, 0, errOf(c.PutDevice(ctx, "d1", client.DevicePut{Blocked: true}, client.WriteOptions{})))
	_, err = send("d1", client.Command{Payload: ptr("on")})
	wantProblem(t, err, 404, "not_found", "path.key")
	g.router.policy = "west" // now every device has a home, with a record or without
	if res, err := send("never-seen", client.Command{Payload: ptr("on")}); ok(t, res, err).Cluster != "west" || g.commander.to.Node.ID != 0 {
		t.Fatalf("command by policy went to %+v", g.commander.to)
	}
	ok(t, 0, errOf(c.PutDevice(ctx, "d1", client.DevicePut{Cluster: "west", Pin: "w2"}, client.WriteOptions{})))
	res, err := send("d1", client.Command{ID: "c-7", PayloadBase64: ptr("AP8="), QoS: ptr(uint8(0)), ExpirySeconds: ptr(uint32(9))})
	want := client.CommandResult{ID: "c-7", Outcome: "dispatched", Detail: "one subscriber", Cluster: "west", Node: "w2"}
	if diff := cmp.Diff(want, ok(t, res, err)); diff != "" {
		t.Fatal(diff)
	}
	if got := g.commander.got; string(got.Payload) != "\x00\xff" || got.QoS != 0 || got.Expiry != 9*time.Second {
		t.Fatalf("unexpected command %+v", got)
	}
	if res, err = send("d1", client.Command{Payload: ptr("")}); ok(t, res, err).ID == "" || g.commander.got.QoS != 1 {
		t.Fatalf("unexpected command %+v", g.commander.got)
	}
	_, err = send("d1", client.Command{})
	wantProblem(t, err, 422, "invalid", "body")
	_, err = send("d1", client.Command{Payload: ptr("a"), PayloadBase64: ptr("YQ==")})
	wantProblem(t, err, 422, "invalid", "body")
	_, err = send("d1", client.Command{PayloadBase64: ptr("YQ")})
	wantProblem(t, err, 422, "invalid", "body.payload_base64")
	_, err = send("d1", client.Command{Payload: ptr("a"), QoS: ptr(uint8(2))})
	wantProblem(t, err, 422, "invalid", "body.qos")
	_, err = send("d1", client.Command{Payload: ptr(strings.Repeat("a", 64<<10+1))})
	wantProblem(t, err, 413, "too_large", "body.payload")
}

func TestWaitAll(t *testing.T) {
	g, ctx := newRig(t), t.Context()
	g.west(t)
	c := g.client(t, "")
	wait := client.WriteOptions{WaitAll: true, WaitTimeout: time.Second}
	res, err := c.PutDevice(ctx, "d1", client.DevicePut{Cluster: "west"}, wait)
	if ok(t, res, err); res.Lagging == nil || len(res.Lagging) != 0 {
		t.Fatalf("want an empty list, got %#v", res.Lagging)
	}
	g.proposer.lagging = []fsm.GatewayID{"gw-b"}
	if res, err = c.PutDevice(ctx, "d1", client.DevicePut{}, wait); !slices.Equal(ok(t, res, err).Lagging, []string{"gw-b"}) {
		t.Fatalf("unexpected %+v", res)
	}
	imported, err := c.ImportDevices(ctx, strings.NewReader(`{"key":"d1"}`), wait)
	if !slices.Equal(ok(t, imported, err).Lagging, []string{"gw-b"}) {
		t.Fatalf("unexpected %+v", imported)
	}
	// The write stands although nobody could be asked: all others are named.
	g.proposer.lagging, g.proposer.waitErr = nil, errors.New("no gossip")
	if res, err = c.PutDevice(ctx, "d1", client.DevicePut{}, wait); !slices.Equal(ok(t, res, err).Lagging, []string{"gw-b", "gw-c"}) {
		t.Fatalf("unexpected %+v", res)
	}
	for _, q := range []string{"?wait=some", "?wait_timeout=1s", "?wait=all&wait_timeout=61s", "?wait=all&wait_timeout=-1s", "?wait=all&wait_timeout=soon"} {
		before := g.tables.Index()
		status, _, body := g.do(t, call{method: "PUT", path: "/v1/devices/d1" + q, body: "{}"})
		if status != 422 || g.tables.Index() != before {
			t.Errorf("%s: %d %s", q, status, body)
		}
	}
}

func TestProbes(t *testing.T) {
	g, ctx := newRig(t, withTokens(t)), t.Context()
	c := g.client(t, "")
	if err := c.Health(ctx); err != nil {
		t.Fatal(err)
	}
	r, err := c.Ready(ctx)
	if !ok(t, r, err).Ready {
		t.Fatalf("unexpected %+v", r)
	}
	g.ready = []string{"no leader"}
	if r, err = c.Ready(ctx); ok(t, r, err).Ready || !slices.Equal(r.Reasons, g.ready) {
		t.Fatalf("unexpected %+v", r)
	}
	if status, _, _ := g.do(t, call{method: "GET", path: "/readyz"}); status != http.StatusServiceUnavailable {
		t.Errorf("not ready answers %d", status)
	}
	if status, _, _ := g.do(t, call{method: "HEAD", path: "/healthz"}); status != http.StatusOK {
		t.Errorf("HEAD answers %d", status)
	}
	if status, _, _ := g.do(t, call{method: "GET", path: "/metrics"}); status != 401 {
		t.Errorf("metrics without a token answer %d", status)
	}
	_, _, body := g.do(t, call{method: "GET", path: "/metrics", token: readToken})
	for _, want := range []string{`turnout_api_requests_total{code="503",method="GET",route="/readyz"} 2`, `turnout_api_request_duration_seconds_count{method="GET",route="/metrics"} 1`} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s in\n%s", want, body)
		}
	}
}
