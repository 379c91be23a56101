package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"turnout/api/client"
	"turnout/node"
	"turnout/test/harness/fleet"
)

// marker stands for every value that an operator might send by mistake, such as a secret in the wrong field. It is a valid name.
const marker = "marker-7f3a"

// markerNumber stands for every number.
const markerNumber = "7770123456"

// The tokens of the office, by role.
var officeTokens = map[string]string{
	"read": "read-4c1d9a5be07f43e2a6b8", "operate": "operate-93be2f7710da4c55b1e9", "admin": "admin-e81b64c0f5a24d3c9772",
}

// office is a fleet whose admin API wants tokens.
type office struct{ *world }

func newOffice(t *testing.T) *office {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens.yaml")
	var rows strings.Builder
	for role, token := range officeTokens {
		fmt.Fprintf(&rows, "- {name: %s-1, role: %s, sha256: %s}\n", role, role, client.HashToken(token))
	}
	if err := os.WriteFile(path, []byte(rows.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return &office{newWorld(t, 3, func(_ int, c *node.Config) { c.API.TokensFile = path })}
}

// as is the admin API of a gateway for whoever has the token of a role.
func (o *office) as(g *fleet.Gateway, role string) *client.Client {
	o.t.Helper()
	c, err := client.New(client.Options{URL: g.URL(), Token: officeTokens[role]})
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(c.Close)
	return c
}

// letter is a request as it goes over the wire.
type letter struct {
	method, path, body string
	header             http.Header // Content-Type is JSON unless it says otherwise
}

// answer is what came back; problem is empty for a success.
type answer struct {
	status  int
	header  http.Header
	body    string
	problem client.Problem
}

// post sends a letter to a gateway, with a token or, when it is empty, without.
func (w *world) post(g *fleet.Gateway, token string, l letter) (answer, error) {
	req, err := http.NewRequestWithContext(w.ctx, l.method, g.URL()+l.path, strings.NewReader(l.body))
	if err != nil {
		return answer{}, err
	}
	if l.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, values := range l.header {
		req.Header[name] = values
	}
	if token != "" {
		req.Header.Add("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	a := answer{status: resp.StatusCode, header: resp.Header, body: string(body)}
	if err == nil && a.status/100 != 2 {
		if a.header.Get("Content-Type") != "application/problem+json" {
			return a, fmt.Errorf("%d is not a problem document but %q", a.status, a.header.Get("Content-Type"))
		}
		err = json.Unmarshal(body, &a.problem)
	}
	return a, err
}

// check holds an answer against what a refusal has to be: its status, one error at the location, and no value of the request.
func (a answer) check(status int, location string) error {
	switch p := a.problem; {
	case a.status != status || p.Status != status || p.Code == "":
		return fmt.Errorf("%d %s, want %d", a.status, a.body, status)
	case location != "" && (len(p.Errors) != 1 || p.Errors[0].Location != location || p.Errors[0].Message == ""):
		return fmt.Errorf("want one error at %s: %s", location, a.body)
	case strings.Contains(strings.ToLower(a.body+fmt.Sprint(a.header)), marker), strings.Contains(a.body, markerNumber):
		return fmt.Errorf("a value is echoed: %v %s", a.header, a.body)
	}
	return nil
}

func etagOf(version uint64) http.Header {
	return http.Header{"If-Match": {strconv.Quote(strconv.FormatUint(version, 10))}}
}

// TestBadAdminRequests sends each bad request to all gateways, so that it is refused by the leader and on the way to it. Nothing changes.
func TestBadAdminRequests(t *testing.T) {
	o := newOffice(t)
	admin := o.as(o.fleet.Gateways()[0], "admin")
	broker := newTakingBroker(t)
	all := client.WriteOptions{WaitAll: true}
	must := func(_ client.WriteResult, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	stale := map[string]uint64{} // a version that each record had before
	for _, name := range []string{"held", "by-policy", "placed", "free"} {
		for range 2 {
			if c, err := admin.Cluster(o.ctx, name); err == nil {
				stale[name] = c.Version
			}
			weight := uint32(len(stale) + 1)
			must(admin.PutCluster(o.ctx, name, client.ClusterSpec{Driver: "static", Addresses: map[string]string{"one": broker.address()}, Weight: &weight}, all))
		}
	}
	var node client.Node
	for _, name := range []string{"held", "by-policy", "placed", "free"} {
		o.eventually("the node of "+name, func() (bool, string) {
			var err error
			node, err = admin.Node(o.ctx, name, "one")
			return err == nil && node.State == "up", fmt.Sprint(node, err)
		})
	}
	must(admin.PutDevice(o.ctx, "pump", client.DevicePut{Cluster: "held"}, all))
	pump, err := admin.Device(o.ctx, "pump")
	if err != nil {
		t.Fatal(err)
	}
	must(admin.PutDevice(o.ctx, "pump", client.DevicePut{Cluster: "held", Blocked: true}, all))
	must(admin.PutPolicy(o.ctx, client.PolicyPut{Policy: "cluster", Cluster: "placed"}, all))
	policy, err := admin.Policy(o.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.talk(o.fleet.Gateways()[1].MQTT(), connect311(2, text("meter")), true, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	o.eventually("the placement of the device", func() (bool, string) {
		d, err := admin.Device(o.ctx, "meter")
		return d.Cluster == "placed", fmt.Sprint(d, err)
	})
	must(admin.PutPolicy(o.ctx, client.PolicyPut{Policy: "cluster", Cluster: "by-policy"}, all))
	must(admin.DrainNode(o.ctx, "free", "one", true, all))
	before := o.checksum(t, admin)

	const device, cluster, devices = "/v1/devices/pump", "/v1/clusters/held", "/v1/devices"
	spec := `{"driver":"static","addresses":{"one":"` + marker + `:1883"}}`
	long := strings.Repeat(marker, 1<<20/len(marker))
	for _, tt := range []struct {
		name, method, path, body string
		header                   http.Header
		status                   int
		location                 string
	}{
		{"bad JSON: cut", "PUT", device, `{"cluster":"` + marker, nil, 400, "body"},
		{"bad JSON: bare word", "PUT", cluster, marker, nil, 400, "body"},
		{"bad JSON: two values", "PATCH", device, `{"cluster":"` + marker + `"}{"cluster":"` + marker + `"}`, nil, 400, "body"},
		{"bad JSON: not UTF-8", "PUT", device, "{\"cluster\":\"" + marker + "\xff\"}", nil, 400, "body"},
		{"bad JSON: half a surrogate pair", "PUT", device, `{"cluster":"` + marker + `\ud800"}`, nil, 400, "body"},
		{"no body", "PUT", device, " ", nil, 400, "body"},
		{"body where none is taken", "DELETE", device, marker, nil, 400, "body"},
		{"body over its limit", "PUT", device, `{"cluster":"` + long + `"}`, nil, 413, "body"},

		{"duplicate key: device", "PUT", device, `{"cluster":"` + marker + `","cluster":"held"}`, nil, 400, "body.cluster"},
		{"duplicate key: by escape", "PATCH", device, `{"cluster":"` + marker + `","clu\u0073ter":"held"}`, nil, 400, "body.cluster"},
		{"duplicate key: channel", "PUT", cluster, `{"channel":{"topic":"` + marker + `","topic":"` + marker + `"}}`, nil, 400, "body.channel.topic"},
		{"duplicate key: address table", "PUT", cluster, `{"addresses":{"one":"` + marker + `:1","one":"` + marker + `:2"}}`, nil, 400, "body.addresses.one"},
		{"duplicate key: policy", "PUT", "/v1/policy", `{"policy":"refuse","policy":"` + marker + `"}`, nil, 400, "body.policy"},
		{"duplicate key: command", "POST", device + "/commands", `{"payload":"` + marker + `","payload":"` + marker + `"}`, nil, 400, "body.payload"},

		{"unknown field: device", "PUT", device, `{"colour":"` + marker + `"}`, nil, 422, "body.colour"},
		{"unknown field: other case", "PATCH", device, `{"Cluster":"` + marker + `"}`, nil, 422, "body.Cluster"},
		{"unknown field: ring", "PUT", cluster, `{"ring":{"size":"` + marker + `"}}`, nil, 422, "body.ring.size"},
		{"unknown field: policy", "PUT", "/v1/policy", `{"policy":"refuse","colour":"` + marker + `"}`, nil, 422, "body.colour"},
		{"unknown field: settings", "PATCH", "/v1/settings", `{"secret":"` + marker + `"}`, nil, 422, "body.secret"},
		{"unknown field: node", "PATCH", "/v1/clusters/free/nodes/one", `{"address":"` + marker + `"}`, nil, 422, "body.address"},
		{"unknown field: query", "GET", devices + "?colour=" + marker, "", nil, 422, "query.colour"},

		{"wrong type", "PUT", device, `{"blocked":"` + marker + `"}`, nil, 422, "body.blocked"},
		{"number too large", "PUT", cluster, `{"port":` + markerNumber + `}`, nil, 422, "body.port"},
		{"number for a name", "PUT", device, `{"cluster":` + markerNumber + `}`, nil, 422, "body.cluster"},
		{"null", "PATCH", device, `{"cluster":null}`, nil, 422, "body.cluster"},
		{"value out of its set", "PUT", cluster, `{"driver":"` + marker + `"}`, nil, 422, "body.driver"},
		{"value out of its bounds", "PUT", cluster, `{"driver":"static","addresses":{"one":"10.0.0.1:1883"},"poll_seconds":3601}`, nil, 422, "body.poll_seconds"},
		{"secret instead of a reference", "PUT", cluster, `{"driver":"emqx","management_urls":["http://127.0.0.1:1"],"credential":"` + marker + `"}`, nil, 422, "body.credential"},
		{"URL with a password", "PUT", cluster, `{"driver":"emqx","management_urls":["http://user:` + marker + `@127.0.0.1:1"]}`, nil, 422, "body.management_urls[0]"},
		{"identity template", "PATCH", "/v1/settings", `{"identity":"{` + marker + `}"}`, nil, 422, "body.identity"},

		{"unknown cluster: of a device", "PUT", device, `{"cluster":"` + marker + `"}`, nil, 422, "body.cluster"},
		{"unknown cluster: no name at all", "PATCH", device, `{"cluster":"` + strings.ToUpper(marker) + `!"}`, nil, 422, "body.cluster"},
		{"unknown cluster: of the policy", "PUT", "/v1/policy", `{"policy":"cluster","cluster":"` + marker + `"}`, nil, 422, "body.cluster"},
		{"unknown cluster: of a listing", "GET", devices + "?cluster=" + marker, "", nil, 422, "query.cluster"},
		{"unknown cluster: read", "GET", "/v1/clusters/" + marker, "", nil, 404, "path.cluster"},
		{"unknown cluster: its nodes", "GET", "/v1/clusters/" + marker + "/nodes", "", nil, 404, "path.cluster"},
		{"unknown cluster: deleted", "DELETE", "/v1/clusters/" + marker, "", nil, 404, "path.cluster"},
		{"unknown cluster: drained", "PATCH", "/v1/clusters/" + marker + "/nodes/one", `{"draining":true}`, nil, 404, "path.cluster"},
		{"unknown node: drained", "PATCH", "/v1/clusters/free/nodes/" + marker, `{"draining":true}`, nil, 404, "path.node"},
		{"unknown node: pin", "PATCH", device, `{"pin":"` + marker + `"}`, nil, 422, "body.pin"},
		{"unknown device: deleted", "DELETE", devices + "/no-" + marker, "", nil, 404, "path.key"},

		{"stale If-Match: device put", "PUT", device, `{"cluster":"free"}`, etagOf(pump.Version), 412, "header.If-Match"},
		{"stale If-Match: device patch", "PATCH", device, `{"blocked":false}`, etagOf(pump.Version), 412, "header.If-Match"},
		{"stale If-Match: device deleted", "DELETE", device, "", etagOf(pump.Version), 412, "header.If-Match"},
		{"stale If-Match: cluster put", "PUT", cluster, spec, etagOf(stale["held"]), 412, "header.If-Match"},
		{"stale If-Match: cluster deleted", "DELETE", "/v1/clusters/free", "", etagOf(stale["free"]), 412, "header.If-Match"},
		{"stale If-Match: policy", "PUT", "/v1/policy", `{"policy":"refuse"}`, etagOf(policy.Version), 412, "header.If-Match"},
		{"stale If-Match: settings", "PATCH", "/v1/settings", `{"identity":"{username}","force":true}`, etagOf(policy.Version), 412, "header.If-Match"},
		{"stale If-Match: node", "PATCH", "/v1/clusters/free/nodes/one", `{"draining":false}`, etagOf(node.Version), 412, "header.If-Match"},
		{"stale If-Match: node deleted", "DELETE", "/v1/clusters/free/nodes/one", "", etagOf(node.Version), 412, "header.If-Match"},
		{"If-Match of a record that is not there", "PUT", devices + "/nobody", `{"cluster":"free"}`, etagOf(pump.Version), 412, "header.If-Match"},
		{"If-Match that is no version", "PUT", device, `{}`, http.Header{"If-Match": {`"` + marker + `"`}}, 400, "header.If-Match"},
		{"If-None-Match of a record that is there", "PUT", device, `{}`, http.Header{"If-None-Match": {"*"}}, 412, ""},

		{"cluster in use by an assignment", "DELETE", cluster, "", nil, 409, "path.cluster"},
		{"cluster in use by a placement", "DELETE", "/v1/clusters/placed", "", nil, 409, "path.cluster"},
		{"node in use by the address table", "DELETE", "/v1/clusters/free/nodes/one", "", nil, 409, "path.node"},
		{"cluster in use by the policy", "DELETE", "/v1/clusters/by-policy", "", nil, 409, "path.cluster"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, g := range o.fleet.Gateways() {
				a, err := o.post(g, officeTokens["admin"], letter{tt.method, tt.path, tt.body, tt.header})
				if err == nil {
					err = a.check(tt.status, tt.location)
				}
				if err != nil {
					t.Errorf("%s: %v", g.Name, err)
				}
			}
			if after := o.checksum(t, admin); after != before {
				t.Errorf("the tables have changed from %s to %s", before, after)
				before = after
			}
		})
	}
	must(admin.DeleteCluster(o.ctx, "free", client.WriteOptions{})) // one that nothing refers to goes
}

func (o *office) checksum(t *testing.T, c *client.Client) string {
	t.Helper()
	s, err := c.Status(o.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s.Checksum
}

// TestTokensAndRoles takes every operation from the API's own description and tries it with no token, with wrong ones, with one whose role
// does not reach, and with one whose role does. That tokens are compared in constant time cannot be seen from outside.
func TestTokensAndRoles(t *testing.T) {
	o := newOffice(t)
	g := o.fleet.Gateways()[0]
	described, err := o.post(g, "", letter{method: "GET", path: "/openapi.json"})
	if err != nil || described.status != http.StatusOK {
		t.Fatalf("description: %d, %v", described.status, err)
	}
	var api struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal([]byte(described.body), &api); err != nil {
		t.Fatal(err)
	}
	type operation struct{ method, path, role string }
	operations := []operation{{"GET", "/metrics", "read"}}
	fill := strings.NewReplacer("{cluster}", "none", "{node}", "none", "{key}", "none", "{gateway}", "none")
	for path, methods := range api.Paths {
		for method, raw := range methods {
			var op struct {
				Role string `json:"x-turnout-role"`
			}
			if err := json.Unmarshal(raw, &op); err != nil || op.Role == "" {
				t.Errorf("%s %s names no role: %v", method, path, err)
			}
			operations = append(operations, operation{strings.ToUpper(method), fill.Replace(path), op.Role})
		}
	}
	if len(operations) < 20 {
		t.Fatalf("only %d operations are described", len(operations))
	}
	ranks := []string{"none", "read", "operate", "admin"}
	for _, op := range operations {
		t.Run(op.method+" "+op.path, func(t *testing.T) {
			try := func(what, token string, header http.Header) answer {
				t.Helper()
				a, err := o.post(g, token, letter{method: op.method, path: op.path, header: header})
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				return a
			}
			right := officeTokens["admin"]
			for what, try := range map[string]func() answer{
				"no token":           func() answer { return try("no token", "", nil) },
				"wrong token":        func() answer { return try("wrong token", marker, nil) },
				"token with a tail":  func() answer { return try("token with a tail", right+"0", nil) },
				"token without tail": func() answer { return try("token without tail", right[:len(right)-1], nil) },
				"hash of the token":  func() answer { return try("hash of the token", client.HashToken(right), nil) },
				"other scheme":       func() answer { return try("other scheme", "", http.Header{"Authorization": {"Basic " + right}}) },
				"no scheme":          func() answer { return try("no scheme", "", http.Header{"Authorization": {right}}) },
				"two tokens": func() answer {
					return try("two tokens", "", http.Header{"Authorization": {"Bearer " + right, "Bearer " + marker}})
				},
			} {
				a := try()
				switch {
				case op.role == "none":
					if a.status == http.StatusUnauthorized || a.status == http.StatusForbidden {
						t.Errorf("%s: %d, although it needs none", what, a.status)
					}
				case a.check(http.StatusUnauthorized, "") != nil || !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer"):
					t.Errorf("%s: %d %v %s, want 401", what, a.status, a.header, a.body)
				}
			}
			need := slices.Index(ranks, op.role)
			for i, role := range ranks[1:] {
				a := try(role, officeTokens[role], nil)
				reaches := a.status != http.StatusUnauthorized && a.status != http.StatusForbidden
				if i+1 < need && a.check(http.StatusForbidden, "") != nil || reaches != (i+1 >= need) {
					t.Errorf("role %s: %d %s, the operation needs %s", role, a.status, a.body, op.role)
				}
			}
		})
	}
}
