package api_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"turnout/api"
	"turnout/api/client"
)

var update = flag.Bool("update", false, "write golden files anew")

// document is what the tests read of the OpenAPI document.
type document struct {
	OpenAPI    string                          `json:"openapi"`
	Paths      map[string]map[string]operation `json:"paths"`
	Components struct {
		Schemas map[string]any `json:"schemas"`
	} `json:"components"`
}

type operation struct {
	Summary     string                     `json:"summary"`
	OperationID string                     `json:"operationId"`
	Role        string                     `json:"x-turnout-role"`
	Security    []map[string][]string      `json:"security"`
	Responses   map[string]json.RawMessage `json:"responses"`
}

func (g *rig) document(t *testing.T) document {
	t.Helper()
	status, h, body := g.do(t, call{method: "GET", path: "/openapi.json"})
	var doc document
	if err := json.Unmarshal([]byte(body), &doc); err != nil || status != 200 || h.Get("Content-Type") != "application/openapi+json" {
		t.Fatalf("openapi: %d %v", status, err)
	}
	return doc
}

func TestOpenAPI(t *testing.T) {
	doc := newRig(t).document(t)
	if !strings.HasPrefix(doc.OpenAPI, "3.1.") {
		t.Errorf("version %s", doc.OpenAPI)
	}
	for _, alien := range []string{"ErrorModel", "ErrorDetail"} {
		if doc.Components.Schemas[alien] != nil {
			t.Errorf("schema %s is not ours", alien)
		}
	}
	var lines []string
	for path, ops := range doc.Paths {
		for method, op := range ops {
			if op.Summary == "" || op.OperationID == "" || op.Role == "" || !strings.Contains(string(op.Responses["default"]), "#/components/schemas/Problem") {
				t.Errorf("%s %s lacks summary, id, role or problem: %+v", method, path, op)
			}
			if (op.Role == "none") != (len(op.Security) == 0) {
				t.Errorf("%s %s: role %s, security %v", method, path, op.Role, op.Security)
			}
			lines = append(lines, strings.Join([]string{path, strings.ToUpper(method), op.Role, op.OperationID}, " "))
		}
	}
	sort.Strings(lines)
	got := strings.Join(lines, "\n") + "\n"
	golden := filepath.Join("testdata", "operations.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("operations changed; run with -update if that is meant\n%s", diff)
	}
}

// TestAuthMatrix tries every operation of the document with every role. A reply other than 401 and 403 means that the door was open.
func TestAuthMatrix(t *testing.T) {
	g := newRig(t, withTokens(t))
	ranks := map[string]int{"none": 0, "read": 1, "operate": 2, "admin": 3}
	tokens := []struct {
		name, token string
		rank        int
	}{{"no token", "", 0}, {"wrong token", "guess", 0}, {"read", readToken, 1}, {"operate", operateToken, 2}, {"admin", adminToken, 3}, {"second admin", adminToken2, 3}}
	fill := strings.NewReplacer("{cluster}", "c", "{node}", "n", "{key}", "k", "{gateway}", "g")
	for path, ops := range g.document(t).Paths {
		for method, op := range ops {
			need, known := ranks[op.Role]
			if !known {
				t.Fatalf("%s %s has no role", method, path)
			}
			if method != "get" && need < ranks["operate"] || strings.HasPrefix(path, "/v1/") && need < ranks["read"] {
				t.Errorf("%s %s asks for role %s only", method, path, op.Role)
			}
			admin := strings.HasPrefix(path, "/v1/clusters") || strings.HasPrefix(path, "/v1/policy") || strings.HasPrefix(path, "/v1/settings") || strings.HasPrefix(path, "/v1/gateways")
			if drain := op.OperationID == "patch-node"; method != "get" && admin && !drain && op.Role != "admin" {
				t.Errorf("%s %s is not for admins only", method, path)
			}
			for _, tok := range tokens {
				want := 0
				switch {
				case need == 0 || tok.rank >= need:
				case tok.rank == 0:
					want = 401
				default:
					want = 403
				}
				status, h, body := g.do(t, call{method: strings.ToUpper(method), path: fill.Replace(path), token: tok.token})
				door := 0
				if status == 401 || status == 403 {
					door = status
				}
				if door != want {
					t.Errorf("%s %s with %s: want %d, got %d %s", method, path, tok.name, want, status, body)
				}
				if (status == 401) != (h.Get("WWW-Authenticate") != "") {
					t.Errorf("%s %s with %s: WWW-Authenticate %q", method, path, tok.name, h.Get("WWW-Authenticate"))
				}
			}
		}
	}
	for _, header := range []string{"bearer " + readToken, "Bearer  " + readToken + " "} {
		if status, _, body := g.do(t, call{method: "GET", path: "/v1/status", header: map[string][]string{"Authorization": {header}}}); status != 200 {
			t.Errorf("%q: %d %s", header, status, body)
		}
	}
	// A token whose hash only begins like that of a valid one.
	near := ""
	for i := 0; !strings.HasPrefix(client.HashToken(near), client.HashToken(adminToken)[:2]); i++ {
		near = strconv.Itoa(i)
	}
	for _, headers := range [][]string{{"Bearer " + near}, {"Bearer "}, {"Bearer"}, {"Basic " + readToken}, {"Bearer " + readToken, "Bearer " + adminToken}, {client.HashToken(readToken)}, {"Bearer " + client.HashToken(readToken)}} {
		if status, _, body := g.do(t, call{method: "GET", path: "/v1/status", header: map[string][]string{"Authorization": headers}}); status != 401 {
			t.Errorf("%q: %d %s", headers, status, body)
		}
	}
}

func TestOpenMetrics(t *testing.T) {
	g := newRig(t, withTokens(t), func(o *api.Options) { o.Config.MetricsPublic = true })
	if status, _, _ := g.do(t, call{method: "GET", path: "/metrics"}); status != 200 {
		t.Errorf("public metrics answer %d", status)
	}
}

func TestFailedAuthLogIsLimited(t *testing.T) {
	g := newRig(t, withTokens(t))
	for range 500 {
		g.do(t, call{method: "PUT", path: "/v1/devices/d1", body: "{}", token: "guess"})
	}
	if n := strings.Count(g.log.String(), "\n"); n > 60 {
		t.Errorf("500 failures made %d lines", n)
	}
	if !strings.Contains(g.log.String(), "without a valid token") {
		t.Error("failures leave no line at all")
	}
}

func TestTokensReload(t *testing.T) {
	path := writeFile(t, "tokens.yaml", tokensYAML())
	g := newRig(t, func(o *api.Options) { o.Config.TokensFile = path })
	status := func(token string) int {
		s, _, _ := g.do(t, call{method: "GET", path: "/v1/status", token: token})
		return s
	}
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("- {name: new, role: admin, sha256: "+client.HashToken("fresh")+"}\n", 0o644)
	if status("fresh") != 401 || status(adminToken) != 200 {
		t.Error("the file counts before it was reloaded")
	}
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	if status("fresh") != 200 || status(adminToken) != 401 {
		t.Error("the reload did not replace the tokens")
	}
	if !strings.Contains(g.log.String(), "open to others") {
		t.Error("no warning about a file that others may read")
	}
	for name, bad := range map[string]string{
		"empty": "", "empty list": "[]", "no name": "- {role: read, sha256: " + client.HashToken("x") + "}", "role": "- {name: a, role: MARKER, sha256: " + client.HashToken("x") + "}",
		"plain token": "- {name: a, role: read, sha256: MARKER}", "unknown key": "- {name: a, role: read, token: MARKER}", "shape": "- MARKER", "not YAML": "{MARKER",
	} {
		write(bad, 0o600)
		err := g.Reload()
		if err == nil || strings.Contains(err.Error(), "MARKER") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if status("fresh") != 200 {
		t.Error("a bad file took the tokens away")
	}
}

func TestAuditLine(t *testing.T) {
	g := newRig(t, withTokens(t))
	g.west(t)
	req := call{method: "PUT", path: "/v1/devices/a%0Ab%22%2F" + strings.Repeat("k", 200), body: `{"cluster":"west"}`}
	g.do(t, req) // no token
	req.token = readToken
	g.do(t, req) // wrong role
	req.token = operateToken
	_, h, _ := g.do(t, req)
	req.header = map[string][]string{"If-Match": {`"1"`}}
	g.do(t, req) // stale
	g.do(t, call{method: "POST", path: "/v1/devices/x/commands", body: `{"payload":"x"}`, token: operateToken})
	g.do(t, call{method: "GET", path: "/v1/devices", token: readToken})
	var lines []string
	for line := range strings.Lines(g.log.String()) {
		if strings.Contains(line, "admin write") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 5 {
		t.Fatalf("want 5 audit lines, got %d:\n%s", len(lines), strings.Join(lines, ""))
	}
	for i, want := range [][]string{
		{`who=""`, "code=unauthorized", "status=401"},
		{"who=dashboard", "code=forbidden", "status=403"},
		{"who=fleet", "code=ok", "status=200", "from=192.0.2.1", "method=PUT", "route=/v1/devices/{key}", `\\nb\\\"/k`, "after=7", "index=7", "request_id=" + h.Get("X-Request-Id")},
		{"who=fleet", "code=conflict", "status=412", "before=7"},
		{"code=not_found", "status=404", "subject=\"\\\"x\\\"\""},
	} {
		for _, w := range want {
			if !strings.Contains(lines[i], w) {
				t.Errorf("line %d lacks %s: %s", i, w, lines[i])
			}
		}
		if len(lines[i]) > 700 {
			t.Errorf("line %d is not cut: %s", i, lines[i])
		}
	}
}
