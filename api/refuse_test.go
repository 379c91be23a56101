package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"turnout/api"
	"turnout/api/client"
	"turnout/fsm"
)

func TestBadInput(t *testing.T) {
	g := newRig(t)
	g.west(t)
	const device, cluster = "/v1/devices/d1", "/v1/clusters/west"
	deep := strings.Repeat(`{"a":`, 17) + "1" + strings.Repeat("}", 17)
	for _, tt := range []struct {
		name, method, path, body string
		header                   http.Header
		status                   int
		location                 string
	}{
		{"no JSON", "PUT", device, `{"cluster":`, nil, 400, "body"},
		{"not quoted", "PUT", device, `{cluster:1}`, nil, 400, "body"},
		{"trailing data", "PUT", device, `{} {}`, nil, 400, "body"},
		{"trailing text", "PUT", device, `{"blocked":true}x`, nil, 400, "body"},
		{"empty body", "PUT", device, " ", nil, 400, "body"},
		{"duplicate member", "PUT", device, `{"blocked":true,"blocked":true}`, nil, 400, "body.blocked"},
		{"duplicate by escape", "PUT", device, `{"blocked":true,"bl\u006fcked":true}`, nil, 400, "body.blocked"},
		{"duplicate nested", "PUT", cluster, `{"channel":{"kind":"emqx","kind":"mqtt"}}`, nil, 400, "body.channel.kind"},
		{"duplicate in map", "PUT", cluster, `{"addresses":{"n":"a:1","n":"b:1"}}`, nil, 400, "body.addresses.n"},
		{"unknown field", "PUT", device, `{"colour":1}`, nil, 422, "body.colour"},
		{"unknown nested", "PUT", cluster, `{"ring":{"size":1}}`, nil, 422, "body.ring.size"},
		{"other case", "PUT", device, `{"Blocked":true}`, nil, 422, "body.Blocked"},
		{"wrong type", "PUT", device, `{"blocked":"yes"}`, nil, 422, "body.blocked"},
		{"wrong type nested", "PUT", cluster, `{"channel":{"qos":"one"}}`, nil, 422, "body.channel.qos"},
		{"not an object", "PUT", device, `[]`, nil, 422, "body"},
		{"null body", "PUT", device, `null`, nil, 422, "body"},
		{"null member", "PATCH", device, `{"cluster":null}`, nil, 422, "body.cluster"},
		{"too large a number", "PUT", cluster, `{"port":70000}`, nil, 422, "body.port"},
		{"negative", "PUT", cluster, `{"port":-1}`, nil, 422, "body.port"},
		{"fraction", "PUT", cluster, `{"port":1.5}`, nil, 422, "body.port"},
		{"too deep", "PUT", device, deep, nil, 422, "body.a"},
		{"too deep where anything goes", "PUT", cluster, `{"addresses":` + deep + `}`, nil, 400, ""},
		{"not UTF-8", "PUT", device, "{\"cluster\":\"\xff\"}", nil, 400, "body"},
		{"half a pair", "PUT", device, `{"cluster":"\ud800"}`, nil, 400, "body"},
		{"over the limit", "PUT", device, `{"cluster":"` + strings.Repeat("a", 1<<20) + `"}`, nil, 413, "body"},
		{"missing member", "PUT", "/v1/policy", `{}`, nil, 422, "body"},
		{"no such member state", "PUT", "/v1/policy", `{"policy":"coin"}`, nil, 422, "body.policy"},
		{"unknown cluster", "PUT", device, `{"cluster":"nowhere"}`, nil, 422, "body.cluster"},
		{"body where none is taken", "DELETE", device, `{}`, nil, 400, "body"},
		{"media type", "PUT", device, `{}`, http.Header{"Content-Type": {"text/plain"}}, 415, "header.Content-Type"},
		{"no media type", "PUT", device, `{}`, http.Header{"Content-Type": nil}, 415, "header.Content-Type"},
		{"media type of import", "POST", "/v1/devices:import", `{}`, nil, 415, "header.Content-Type"},
		{"content encoding", "PUT", device, `{}`, http.Header{"Content-Encoding": {"gzip"}}, 415, "header.Content-Encoding"},
		{"stale If-Match", "PUT", cluster, `{"driver":"static","addresses":{"a":"b:1"}}`, http.Header{"If-Match": {`"1"`}}, 412, "header.If-Match"},
		{"odd If-Match", "PUT", device, `{}`, http.Header{"If-Match": {"*"}}, 400, "header.If-Match"},
		{"weak If-Match", "PUT", device, `{}`, http.Header{"If-Match": {`W/"1"`}}, 400, "header.If-Match"},
		{"odd If-None-Match", "PUT", device, `{}`, http.Header{"If-None-Match": {`"1"`}}, 400, "header.If-None-Match"},
		{"both conditions", "PUT", device, `{}`, http.Header{"If-Match": {`"1"`}, "If-None-Match": {"*"}}, 400, "header.If-None-Match"},
		{"condition not taken", "DELETE", device, "", http.Header{"If-None-Match": {"*"}}, 400, "header.If-None-Match"},
		{"broken query", "GET", "/v1/devices?prefix=%zz", "", nil, 400, "query"},
		{"no such path", "GET", "/v1/nothing", "", nil, 404, ""},
		{"no key", "GET", "/v1/devices/", "", nil, 404, ""},
		{"empty key", "GET", "/v1/devices//route", "", nil, 422, "path.key"},
		{"method", "POST", device, `{}`, nil, 405, ""},
		{"odd method", "BREW", device, `{}`, nil, 405, ""},
		{"delete in use", "DELETE", cluster, "", nil, 409, "path.cluster"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "delete in use" {
				g.must(t, &fsm.PutDevices{Changes: []fsm.DeviceChange{{Key: "x", Cluster: ptr(fsm.ClusterName("west"))}}})
			}
			before := g.tables.Index()
			status, h, body := g.do(t, call{method: tt.method, path: tt.path, body: tt.body, header: tt.header})
			var p client.Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil || h.Get("Content-Type") != "application/problem+json" {
				t.Fatalf("not a problem document: %s %q", h.Get("Content-Type"), body)
			}
			if status != tt.status || p.Status != status || p.Code == "" || p.RequestID != h.Get("X-Request-Id") {
				t.Fatalf("want %d, got %d %s", tt.status, status, body)
			}
			if tt.location != "" && (len(p.Errors) != 1 || p.Errors[0].Location != tt.location) {
				t.Fatalf("want location %s, got %s", tt.location, body)
			}
			refusedByTables := status == 412 || status == 409 || tt.name == "unknown cluster"
			if after := g.tables.Index(); after != before && !refusedByTables {
				t.Fatalf("something was proposed")
			}
			if tt.status == 405 && h.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
	// The bound itself still fits.
	body := `{"cluster":"` + strings.Repeat("a", 1<<20-14) + `"}`
	if status, _, text := g.do(t, call{method: "PUT", path: device, body: body}); status != 422 {
		t.Errorf("a body of 1 MiB: %d %s", status, text)
	}
}

// TestNothingIsEchoed sends a marker as every value of every write and looks for it in refusals and in the log.
func TestNothingIsEchoed(t *testing.T) {
	const marker, number = "MARKER7f3a", "7770123456789077" // longer than an id or a time in a log
	g := newRig(t, withTokens(t))
	g.west(t)
	c := func(path string) call { return call{method: "PUT", path: path, token: adminToken} }
	spec := []string{"driver", "credential", "poll_seconds", "remove_after", "port", "weight", "ring", "channel", "management_urls", "addresses"}
	calls := map[string][]string{ // path → members
		"PUT /v1/clusters/west":                spec,
		"PATCH /v1/clusters/west/nodes/w1":     {"draining"},
		"PUT /v1/devices/d1":                   {"cluster", "pin", "pin_strict", "blocked"},
		"PATCH /v1/devices/d1":                 {"cluster", "pin", "pin_strict", "blocked"},
		"POST /v1/devices/d1/commands":         {"id", "payload", "payload_base64", "qos", "expiry_seconds"},
		"PUT /v1/policy":                       {"policy", "cluster"},
		"PATCH /v1/settings":                   {"identity", "force"},
		"POST /v1/devices:import":              {"key", "cluster", "pin", "pin_strict", "blocked"},
		"PUT /v1/clusters/west?wait=" + marker: {"driver"},
	}
	values := []string{`"%s"`, `["%s"]`, `{"x":"%s"}`, `"\ud800%s"`, `"%s`, `{"%[1]s":"%[1]s"}`, `"%s"}{`, number + `%.0s`}
	for target, members := range calls {
		method, path, _ := strings.Cut(target, " ")
		for _, member := range members {
			for _, value := range values {
				req := c(path)
				req.method = method
				req.body = `{"` + member + `":` + fmt.Sprintf(value, marker) + `}`
				if strings.HasSuffix(path, ":import") {
					req.header = http.Header{"Content-Type": {"application/x-ndjson"}}
				}
				status, h, body := g.do(t, req)
				seen := body + fmt.Sprint(h)
				if value == `{"%[1]s":"%[1]s"}` { // a member's own name may be told, once
					seen = strings.Replace(seen, "."+marker, "", 1)
				}
				if status/100 == 2 {
					continue
				}
				if strings.Contains(seen, marker) || strings.Contains(seen, number) {
					t.Errorf("%s %s echoes: %d %s", target, req.body, status, body)
				}
			}
		}
	}
	for _, req := range []call{
		{method: "GET", path: "/v1/devices?cluster=" + marker},
		{method: "GET", path: "/v1/devices?limit=" + marker},
		{method: "GET", path: "/v1/devices?cursor=" + marker},
		{method: "GET", path: "/v1/devices?blocked=" + marker},
		{method: "GET", path: "/v1/devices/no-" + marker},
		{method: "GET", path: "/v1/clusters/" + marker},
		{method: "GET", path: "/" + marker},
		{method: "PUT", path: "/v1/devices/d1", body: "{}", header: http.Header{"If-Match": {marker}}},
		{method: "PUT", path: "/v1/devices/d1", body: "{}", header: http.Header{"If-None-Match": {marker}}},
		{method: "PUT", path: "/v1/devices/d1", body: "{}", header: http.Header{"Content-Type": {"a/" + marker}}},
		{method: "PUT", path: "/v1/devices/d1", body: "{}", header: http.Header{"Content-Encoding": {marker}}},
		{method: "GET", path: "/v1/devices", token: marker},
		{method: "GET", path: "/v1/devices", header: http.Header{"Authorization": {"Basic " + marker}}},
	} {
		if req.token == "" && req.header.Get("Authorization") == "" {
			req.token = adminToken
		}
		status, h, body := g.do(t, req)
		if status/100 != 4 || strings.Contains(body+fmt.Sprint(h), marker) {
			t.Errorf("%s %s: %d %s", req.method, req.path, status, body)
		}
	}
	for _, word := range []string{marker, number, adminToken, secret} {
		if strings.Contains(g.log.String(), word) {
			t.Errorf("the log holds %s:\n%s", word, g.log.String())
		}
	}
	if !strings.Contains(g.log.String(), "admin write") {
		t.Error("there is no audit line at all")
	}
}

func TestRefusalsOfTheCluster(t *testing.T) {
	g, ctx := newRig(t), t.Context()
	c := g.client(t, "")
	for _, tt := range []struct {
		err    error
		guard  uint64
		status int
		code   string
	}{
		{fsm.NewError(fsm.CodeNoLeader, "", "none"), 0, 503, "no_leader"},
		{fmt.Errorf("forward: %w", fsm.NewError(fsm.CodeUnknown, "", "cut off")), 0, 504, "unknown"},
		{errors.New("something else"), 0, 504, "unknown"},
		{fsm.NewError(fsm.CodeTimeout, "", "slow"), 0, 504, "timeout"},
		{fsm.NewError(fsm.CodeUnsupported, "", "old"), 0, 501, "unsupported"},
		{fsm.NewError(fsm.CodeConflict, "version", "stale"), 0, 409, "conflict"},
		{fsm.NewError(fsm.CodeConflict, "version", "stale"), 4, 412, "conflict"},
		{fsm.NewError(fsm.CodeInvalid, "cluster", "no such cluster"), 0, 422, "invalid"},
		{fsm.NewError(fsm.CodeInUse, "", "in use"), 0, 409, "in_use"},
		{fsm.NewError(fsm.CodeNotFound, "key", "none"), 0, 404, "not_found"},
	} {
		g.proposer.failWith(func(fsm.Command) error { return tt.err })
		_, err := c.PutDevice(ctx, "d1", client.DevicePut{}, client.WriteOptions{IfMatch: tt.guard})
		wantProblem(t, err, tt.status, tt.code, "")
		p := problemOf(t, err)
		if (p.RetryAfter > 0) != (tt.code == "no_leader") {
			t.Errorf("%s: Retry-After %v", tt.code, p.RetryAfter)
		}
		if tt.code == "unknown" && !strings.Contains(p.Detail, "may or may not") || strings.Contains(p.Error(), "something else") {
			t.Errorf("unexpected text: %v", p)
		}
	}
}

// panickyRouter stands for a mistake of ours.
type panickyRouter struct{}

func (panickyRouter) Explain(api.ExplainRequest) api.Explanation { panic("MARKER-panic") }

func TestPanicsAndGuards(t *testing.T) {
	g := newRig(t, func(o *api.Options) { o.Router = panickyRouter{} })
	status, h, body := g.do(t, call{method: "GET", path: "/v1/devices/d1/route"})
	if status != 500 || h.Get("Content-Type") != "application/problem+json" || strings.Contains(body+g.log.String(), "MARKER-panic") {
		t.Errorf("%d %s", status, body)
	}
	if !strings.Contains(g.log.String(), "request panicked") {
		t.Error("a panic leaves no line in the log")
	}
	for origin, want := range map[string]int{"http://localhost": 200, "http://evil.example": 403} {
		status, _, body := g.do(t, call{method: "PUT", path: "/v1/devices/d1", body: "{}", header: http.Header{"Origin": {origin}}})
		if status != want {
			t.Errorf("origin %s: %d %s", origin, status, body)
		}
	}
}

func TestHostWithoutTokens(t *testing.T) {
	get := func(g *rig, host string) int {
		req, err := http.NewRequestWithContext(t.Context(), "GET", g.url+"/v1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	open := newRig(t)
	for host, want := range map[string]int{"localhost:1": 200, "127.0.0.1": 200, "[::1]:80": 200, "[::1]": 200, "evil.example": 421, "127.0.0.1.evil.example:80": 421} {
		if got := get(open, host); got != want {
			t.Errorf("host %s: %d", host, got)
		}
	}
	insecure := newRig(t, func(o *api.Options) { o.Config.Insecure = true })
	if got := get(insecure, "gw-1:8080"); got != 200 {
		t.Errorf("insecure: %d", got)
	}
}
