package harness

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

type apiFixture struct {
	*ManagementAPI
	t       *testing.T
	cluster *Cluster
	client  *http.Client
}

func startAPI(t *testing.T, role string) *apiFixture {
	t.Helper()
	c := startCluster(t, "west", 2)
	a, err := NewManagementAPI(ManagementAPIOptions{Cluster: c, Key: "key", Secret: "s3cret", Role: role})
	must(t, err)
	t.Cleanup(func() { must(t, a.Close()) })
	must(t, a.Start())
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	noFollow := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &apiFixture{a, t, c, &http.Client{Transport: transport, CheckRedirect: noFollow, Timeout: 20 * time.Second}}
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (f *apiFixture) request(method, path, body string, change func(*http.Request)) (answer, error) {
	f.t.Helper()
	r, err := http.NewRequestWithContext(f.t.Context(), method, f.URL()+path, strings.NewReader(body))
	must(f.t, err)
	r.SetBasicAuth("key", "s3cret")
	r.Header.Set("Accept", "application/json")
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if change != nil {
		change(r)
	}
	res, err := f.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	content, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return answer{res.StatusCode, res.Header, strings.TrimSpace(string(content))}, err
}

func (f *apiFixture) do(method, path, body string) answer {
	f.t.Helper()
	got, err := f.request(method, path, body, nil)
	must(f.t, err)
	return got
}

func decode[T any](t *testing.T, got answer) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(got.body), &v); err != nil {
		t.Fatalf("status %d, body %q: %v", got.status, got.body, err)
	}
	return v
}

// Keys of a running node in EMQX 5.8.9.
var nodeKeys = []string{
	"cluster_sessions", "connections", "edition", "live_connections", "load1", "load15", "load5", "log_path", "max_fds",
	"memory_total", "memory_used", "node", "node_status", "otp_release", "process_available", "process_used", "role",
	"sys_path", "uptime", "version",
}

func TestAPINodes(t *testing.T) {
	f := startAPI(t, "")
	a, b := f.cluster.Nodes()[0], f.cluster.Nodes()[1]
	connect(t, DeviceOptions{Address: a.Address(), ClientID: "on", CleanStart: true})
	connect(t, DeviceOptions{Address: a.Address(), ClientID: "off"}).Kill()
	eventually(t, "one is offline", func() bool { _, live := a.sessionCounts(); return live == 1 })

	nodes := decode[[]map[string]any](t, f.do("GET", "/api/v5/nodes", ""))
	if len(nodes) != 2 {
		t.Fatalf("%d nodes", len(nodes))
	}
	n := nodes[0]
	if keys := sortedKeys(n); !slices.Equal(keys, nodeKeys) {
		t.Errorf("keys %v", keys)
	}
	if n["node"] != a.Name() || n["node_status"] != "running" || n["connections"] != 2.0 || n["live_connections"] != 1.0 ||
		n["cluster_sessions"] != 2.0 || nodes[1]["connections"] != 0.0 || nodes[1]["cluster_sessions"] != 2.0 {
		t.Errorf("nodes %v", nodes)
	}

	must(t, b.Stop())
	nodes = decode[[]map[string]any](t, f.do("GET", "/api/v5/nodes", ""))
	if len(nodes) != 2 || !slices.Equal(sortedKeys(nodes[1]), []string{"node", "node_status", "role"}) ||
		nodes[1]["node_status"] != "stopped" || nodes[1]["role"] != "core" || nodes[1]["node"] != b.Name() {
		t.Errorf("stopped node: %v", nodes[1:])
	}
	cluster := decode[struct {
		Name, Self string
		Nodes      []string
	}](t, f.do("GET", "/api/v5/cluster", ""))
	if cluster.Name != "emqxcl" || cluster.Self != a.Name() || !slices.Equal(cluster.Nodes, []string{a.Name()}) {
		t.Errorf("cluster %+v", cluster)
	}
	must(t, f.cluster.RemoveNode(b.Name()))
	if nodes = decode[[]map[string]any](t, f.do("GET", "/api/v5/nodes", "")); len(nodes) != 1 {
		t.Errorf("a removed node is listed: %v", nodes)
	}
	must(t, a.Stop())
	if got := f.do("GET", "/api/v5/nodes", ""); got.status != 503 || got.body != "" {
		t.Errorf("no node runs: %+v", got)
	}
}

func TestAPIHiddenAndReportedNodes(t *testing.T) {
	f := startAPI(t, "")
	a, b := f.cluster.Nodes()[0], f.cluster.Nodes()[1]
	f.HideNode(b.Name(), true)
	if nodes := decode[[]map[string]any](t, f.do("GET", "/api/v5/nodes", "")); len(nodes) != 1 || nodes[0]["node"] != a.Name() {
		t.Errorf("nodes %v", nodes)
	}
	f.HideNode(b.Name(), false)
	f.ReportStopped(a.Name(), true)
	nodes := decode[[]map[string]any](t, f.do("GET", "/api/v5/nodes", ""))
	if len(nodes) != 2 || nodes[0]["node_status"] != "stopped" || nodes[1]["node_status"] != "running" {
		t.Errorf("nodes %v", nodes)
	}
	connect(t, DeviceOptions{Address: a.Address(), ClientID: "x", CleanStart: true}) // it only looks stopped
}

func TestAPIListenersAndStatus(t *testing.T) {
	f := startAPI(t, "")
	a := f.cluster.Nodes()[0]
	connect(t, DeviceOptions{Address: f.cluster.Nodes()[1].Address(), ClientID: "x", CleanStart: true})
	l := decode[[]struct {
		ID, Type, Bind string
		Number         int
		Status         map[string]any
		NodeStatus     []struct {
			Node   string
			Status map[string]any
		} `json:"node_status"`
	}](t, f.do("GET", "/api/v5/listeners?type=tcp", ""))
	if len(l) != 1 || l[0].ID != "tcp:default" || l[0].Bind != a.Address() || l[0].Number != 2 ||
		l[0].Status["current_connections"] != 1.0 || l[0].Status["max_connections"] != "infinity" ||
		len(l[0].NodeStatus) != 2 || l[0].NodeStatus[1].Status["current_connections"] != 1.0 {
		t.Errorf("listeners %+v", l)
	}
	if got := f.do("GET", "/api/v5/listeners?type=ssl", ""); got.body != "[]" {
		t.Errorf("ssl listeners %q", got.body)
	}
	anonymous := func(r *http.Request) { r.Header.Del("Authorization") }
	got, err := f.request("GET", "/status", "", anonymous)
	must(t, err)
	if got.status != 200 || got.body != "Node "+a.Name()+" is started\nemqx is running" {
		t.Errorf("status %+v", got)
	}
	got, err = f.request("GET", "/api/v5/status?format=json", "", anonymous)
	must(t, err)
	if s := decode[map[string]string](t, got); s["node_name"] != a.Name() || s["app_status"] != "running" || s["rel_vsn"] != "v5.8.9" {
		t.Errorf("status %v", s)
	}
}

func TestAPIAuthentication(t *testing.T) {
	f := startAPI(t, RoleViewer)
	tests := []struct {
		name       string
		method     string
		path       string
		change     func(*http.Request)
		status     int
		code       string
		challenged bool
	}{
		{"no header", "GET", "/api/v5/nodes", func(r *http.Request) { r.Header.Del("Authorization") }, 401, "AUTHORIZATION_HEADER_ERROR", true},
		{"unknown scheme", "GET", "/api/v5/nodes", func(r *http.Request) { r.Header.Set("Authorization", "Digest x") }, 401, "AUTHORIZATION_HEADER_ERROR", true},
		{"unknown token", "GET", "/api/v5/nodes", func(r *http.Request) { r.Header.Set("Authorization", "Bearer x.y.z") }, 401, "BAD_TOKEN", false},
		{"wrong secret", "GET", "/api/v5/nodes", func(r *http.Request) { r.SetBasicAuth("key", "no") }, 401, "BAD_API_KEY_OR_SECRET", true},
		{"wrong key", "GET", "/api/v5/cluster", func(r *http.Request) { r.SetBasicAuth("no", "s3cret") }, 401, "BAD_API_KEY_OR_SECRET", true},
		{"role too weak", "DELETE", "/api/v5/clients/x", nil, 403, "UNAUTHORIZED_ROLE", false},
		{"unknown path, JSON", "GET", "/api/v5/nothing", nil, 404, "NOT_FOUND", false},
		{"unknown path, HTML", "GET", "/api/v5/nothing", func(r *http.Request) { r.Header.Del("Accept") }, 404, "", false},
		{"wrong method", "PUT", "/api/v5/nodes", nil, 405, "", false},
	}
	for _, tt := range tests {
		got, err := f.request(tt.method, tt.path, "", tt.change)
		must(t, err)
		if got.status != tt.status || (got.header.Get("WWW-Authenticate") != "") != tt.challenged {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if tt.code != "" && decode[map[string]string](t, got)["code"] != tt.code {
			t.Errorf("%s: body %s", tt.name, got.body)
		}
	}
	if got := f.do("PUT", "/api/v5/nodes", ""); got.body != "" || got.header.Get("Allow") != "GET" {
		t.Errorf("405 answer %+v", got)
	}
	if got := f.do("GET", "/api/v5/nodes", ""); got.status != 200 {
		t.Errorf("a viewer may read: %+v", got)
	}
	if n := f.Requests()["GET /api/v5/nodes"]; n != 5 {
		t.Errorf("counted %d requests for nodes, want 5", n)
	}
	if n := f.Requests()["other"]; n != 2 {
		t.Errorf("counted %d other requests, want 2", n)
	}
}

func TestAPIClients(t *testing.T) {
	f := startAPI(t, "")
	b := f.cluster.Nodes()[1]
	id := "plant/7 %ü+#/.."
	path := "/api/v5/clients/" + url.PathEscape(id)
	if got := f.do("GET", path, ""); got.status != 404 || decode[map[string]string](t, got)["code"] != "CLIENTID_NOT_FOUND" {
		t.Errorf("unknown client: %+v", got)
	}
	if got := f.do("DELETE", path, ""); got.status != 404 || decode[map[string]string](t, got)["code"] != "CLIENTID_NOT_FOUND" {
		t.Errorf("kick of an unknown client: %+v", got)
	}
	d := connect(t, DeviceOptions{Address: b.Address(), ClientID: id, Username: "u", Version: 5, SessionExpiry: 7200, Subscribe: []string{"a", "b"}})
	c := decode[map[string]any](t, f.do("GET", path, ""))
	if c["clientid"] != id || c["username"] != "u" || c["node"] != b.Name() || c["connected"] != true || c["proto_ver"] != 5.0 ||
		c["ip_address"] != "127.0.0.1" || c["subscriptions_cnt"] != 2.0 || c["expiry_interval"] != 7200.0 ||
		c["clean_start"] != false || c["keepalive"] != 60.0 || c["disconnected_at"] != nil {
		t.Errorf("client %v", c)
	}
	if _, err := time.Parse(emqxTime, c["connected_at"].(string)); err != nil {
		t.Error(err)
	}
	d.Kill()
	eventually(t, "the session is offline", func() bool {
		c = decode[map[string]any](t, f.do("GET", path, ""))
		return c["connected"] == false
	})
	if c["disconnected_at"] == nil {
		t.Error("no disconnected_at")
	}
	if got := f.do("DELETE", path, ""); got.status != 204 || got.body != "" {
		t.Errorf("kick: %+v", got)
	}
	if got := f.do("GET", path, ""); got.status != 404 {
		t.Errorf("after the kick: %+v", got)
	}
}

func TestAPIPublish(t *testing.T) {
	f := startAPI(t, "")
	d := connect(t, DeviceOptions{Address: f.cluster.Nodes()[1].Address(), ClientID: "d", Version: 5, CleanStart: true, Subscribe: []string{"dev/+/cmd"}})
	got := f.do("POST", "/api/v5/publish", `{"topic":"dev/d/cmd","payload":"eyJvcCI6MX0=","payload_encoding":"base64","qos":1,"clientid":"ignored",
		"properties":{"payload_format_indicator":1,"message_expiry_interval":60,"response_topic":"dev/d/ack","correlation_data":"c-91",
		"content_type":"application/json","user_properties":{"req":"91"}}}`)
	if got.status != 200 || !regexp.MustCompile(`^[0-9A-F]{32}$`).MatchString(decode[map[string]string](t, got)["id"]) {
		t.Fatalf("answer %+v", got)
	}
	m, err := d.Await(testContext(t), func(Message) bool { return true })
	must(t, err)
	p := m.Properties
	if string(m.Payload) != `{"op":1}` || m.QoS != 1 || p.PayloadFormat == nil || *p.PayloadFormat != 1 || p.ExpirySeconds == 0 ||
		p.ResponseTopic != "dev/d/ack" || string(p.CorrelationData) != "c-91" || p.ContentType != "application/json" ||
		!slices.Equal(p.User, []UserProperty{{"req", "91"}}) {
		t.Errorf("message %+v", m)
	}
	tests := []struct {
		name, body string
		status     int
		reason     float64 // 0: the other shape, code BAD_REQUEST
	}{
		{"nobody subscribed", `{"topic":"x","payload":""}`, 202, 16},
		{"wildcard topic", `{"topic":"dev/+/cmd","payload":""}`, 400, 144},
		{"empty topic", `{"topic":"","payload":""}`, 400, 144},
		{"too large", `{"topic":"x","payload":"` + strings.Repeat("a", 1<<20) + `"}`, 400, 151},
		{"bad base64", `{"topic":"x","payload":"%","payload_encoding":"base64"}`, 400, 131},
		{"no topic", `{"payload":""}`, 400, 0},
		{"no payload", `{"topic":"x"}`, 400, 0},
		{"payload no string", `{"topic":"x","payload":{}}`, 400, 0},
		{"QoS 3", `{"topic":"x","payload":"","qos":3}`, 400, 0},
		{"unknown encoding", `{"topic":"x","payload":"","payload_encoding":"hex"}`, 400, 0},
		{"broken JSON", `{"topic":`, 400, 0},
	}
	for _, tt := range tests {
		got := f.do("POST", "/api/v5/publish", tt.body)
		body := decode[map[string]any](t, got)
		if got.status != tt.status {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if tt.reason == 0 && body["code"] != "BAD_REQUEST" || tt.reason != 0 && body["reason_code"] != tt.reason {
			t.Errorf("%s: body %v", tt.name, body)
		}
	}
	got, err = f.request("POST", "/api/v5/publish", `{"topic":"x","payload":""}`, func(r *http.Request) { r.Header.Del("Content-Type") })
	must(t, err)
	if got.status != 400 {
		t.Errorf("no content type: %+v", got)
	}
	f.FailPublish(true)
	if got := f.do("POST", "/api/v5/publish", `{"topic":"dev/d/cmd","payload":"x"}`); got.status != 503 || decode[map[string]any](t, got)["reason_code"] != 131.0 {
		t.Errorf("failing publish: %+v", got)
	}
	f.FailPublish(false)
	d.Disconnect()
	connect(t, DeviceOptions{Address: f.cluster.Nodes()[0].Address(), ClientID: "p", Subscribe: []string{"p"}}).Kill()
	eventually(t, "the session is offline", func() bool { info, ok := f.cluster.Client("p"); return ok && !info.Connected })
	if got := f.do("POST", "/api/v5/publish", `{"topic":"p","payload":"x","qos":1}`); got.status != 200 {
		t.Errorf("an offline persistent session is a subscriber: %+v", got)
	}
}

func TestAPIFaults(t *testing.T) {
	f := startAPI(t, "")
	base := f.URL()
	good := func() {
		t.Helper()
		must(t, f.SetFault(FaultNone))
		if got := f.do("GET", "/api/v5/nodes", ""); got.status != 200 || f.URL() != base {
			t.Errorf("healed API at %s: %+v", f.URL(), got)
		}
	}
	good()
	must(t, f.SetFault(FaultUnreachable))
	if _, err := f.request("GET", "/api/v5/nodes", "", nil); err == nil {
		t.Error("an unreachable API answered")
	}
	good()

	for fault, want := range map[Fault]struct {
		status int
		body   string
	}{
		FaultServerError:  {500, `{"code":"INTERNAL_ERROR"`},
		FaultUnavailable:  {503, ""},
		FaultUnauthorized: {401, `{"code":"BAD_API_KEY_OR_SECRET"`},
		FaultEmptyList:    {200, "[]"},
		FaultHTML404:      {404, "<!DOCTYPE html>"},
		FaultGarbage:      {200, `[{"node":`},
		FaultRedirect:     {302, ""},
	} {
		must(t, f.SetFault(fault))
		got := f.do("GET", "/api/v5/nodes", "")
		if got.status != want.status || !strings.HasPrefix(got.body, want.body) || want.body == "" && got.body != "" {
			t.Errorf("fault %d: %+v", fault, got)
		}
		if fault == FaultGarbage && json.Valid([]byte(got.body)) {
			t.Error("garbage is valid JSON")
		}
		if fault == FaultRedirect && got.header.Get("Location") != base+"/redirected" {
			t.Errorf("redirected to %q", got.header.Get("Location"))
		}
	}
	if n := f.Requests()["GET /redirected"]; n != 0 {
		t.Errorf("nobody followed, but %d requests were counted", n)
	}
	good()

	must(t, f.SetFault(FaultOversize))
	if got, err := f.request("GET", "/api/v5/nodes", "", nil); err != nil || len(got.body) != 1<<20 {
		t.Errorf("oversize: %d bytes, error %v", len(got.body), err)
	}

	must(t, f.SetFault(FaultHang))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := f.request("GET", "/api/v5/nodes", "", func(r *http.Request) { *r = *r.WithContext(ctx) })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hanging API gave %v", err)
	}
	dropped := make(chan error, 1)
	before := f.Requests()["GET /api/v5/nodes"]
	go func() {
		_, err := f.request("GET", "/api/v5/nodes", "", nil)
		dropped <- err
	}()
	eventually(t, "a request hangs", func() bool { return f.Requests()["GET /api/v5/nodes"] > before })
	must(t, f.SetFault(FaultNone))
	if err := <-dropped; err == nil {
		t.Error("a hanging request was answered after the fault")
	}
	good()
	must(t, f.SetFault(FaultHang)) // Close must not wait for it
	go func() { _, err := f.request("GET", "/api/v5/nodes", "", nil); dropped <- err }()
	eventually(t, "a request hangs", func() bool { return f.Requests()["GET /api/v5/nodes"] > before+2 })
	must(t, f.Close())
	<-dropped
}
