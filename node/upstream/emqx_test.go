package upstream

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"turnout/fsm"
)

// nodes5 is an answer of EMQX 5.8: two cores, a replicant and a stopped core, which carries three keys alone.
const nodes5 = `[
 {"node":"emqx@emqx-0.iot.svc.cluster.local","node_status":"running","role":"core","connections":18412,"live_connections":17790,
  "cluster_sessions":53120,"load1":1.37,"memory_total":"15.52G","uptime":86423110,"version":"5.8.9","edition":"Opensource"},
 {"node":"emqx@10.20.7.32","node_status":"running","role":"core","load1":"0.42","uptime":"12"},
 {"node":"emqx@repl-0.iot.svc.cluster.local","node_status":"running","role":"replicant","something_new":{"a":[1]}},
 {"node":"emqx@emqx-1.iot.svc.cluster.local","node_status":"stopped","role":"core"}]`

func TestParseEMQXNodes(t *testing.T) {
	up, down, suspect := fsm.NodeUp, fsm.NodeDown, fsm.NodeSuspect
	tests := []struct {
		name, body string
		want       []Member // nil: bad answer
	}{
		{"cluster of 5.8", nodes5, []Member{
			{Name: "emqx@emqx-0.iot.svc.cluster.local", State: up, Address: "emqx-0.iot.svc.cluster.local:1883"},
			{Name: "emqx@10.20.7.32", State: up, Address: "10.20.7.32:1883"},
			{Name: "emqx@repl-0.iot.svc.cluster.local", State: up, Address: "repl-0.iot.svc.cluster.local:1883"},
			{Name: "emqx@emqx-1.iot.svc.cluster.local", State: down, Address: "emqx-1.iot.svc.cluster.local:1883"},
		}},
		{"5.0.4 writes Running", `[{"node":"emqx@10.0.0.1","node_status":"Running"}]`, []Member{{Name: "emqx@10.0.0.1", State: up, Address: "10.0.0.1:1883"}}},
		{"5.0.20 without live_connections", `[{"node":"emqx@10.0.0.1","node_status":"running","connections":3}]`, []Member{{Name: "emqx@10.0.0.1", State: up, Address: "10.0.0.1:1883"}}},
		{"booleans", `[{"node":"emqx@10.0.0.1","node_status":true},{"node":"emqx@10.0.0.2","node_status":false}]`, []Member{
			{Name: "emqx@10.0.0.1", State: up, Address: "10.0.0.1:1883"}, {Name: "emqx@10.0.0.2", State: down, Address: "10.0.0.2:1883"}}},
		{"error, unknown and absent status", `[{"node":"emqx@10.0.0.1","error":"nodedown"},{"node":"emqx@10.0.0.2","node_status":"odd"},{"node":"emqx@10.0.0.3"}]`, []Member{
			{Name: "emqx@10.0.0.1", State: suspect, Address: "10.0.0.1:1883"}, {Name: "emqx@10.0.0.2", State: suspect, Address: "10.0.0.2:1883"},
			{Name: "emqx@10.0.0.3", State: suspect, Address: "10.0.0.3:1883"}}},
		{"listed twice", `[{"node":"emqx@10.0.0.1","node_status":"running"},{"node":"emqx@10.0.0.1","node_status":"stopped"}]`, []Member{
			{Name: "emqx@10.0.0.1", State: up, Address: "10.0.0.1:1883"}}},
		{"loopback name", `[{"node":"emqx@127.0.0.1","node_status":"running"}]`, []Member{{Name: "emqx@127.0.0.1", State: up, Address: "mgmt.example.com:1883"}}},
		{"some entries not usable", `[{"node":"emqx@10.0.0.1","node_status":"running"},{"node":"emqx"},{"node":7},{}]`, []Member{
			{Name: "emqx@10.0.0.1", State: up, Address: "10.0.0.1:1883"},
			{Name: "emqx", State: suspect, Problem: "a node name that is not of the form name@host"},
			{Problem: "an entry without a node name"}, {Problem: "an entry without a node name"}}},
		{"empty list", `[]`, nil},
		{"null", `null`, nil},
		{"nothing", ``, nil},
		{"no usable entry", `[{"node":"a@b@c"}]`, nil},
		{"object", `{"code":0,"data":[{"node":"emqx@10.0.0.1","node_status":"Running"}]}`, nil},
		{"entries are not objects", `["emqx@10.0.0.1"]`, nil},
		{"HTML", `<html>hello</html>`, nil},
		{"cut short", nodes5[:200], nil},
		{"text behind", `[{"node":"emqx@10.0.0.1","node_status":"running"}] and more`, nil},
		{"too many", "[" + strings.Repeat(`{"node":"a@b"},`, 200) + `{"node":"a@b"}]`, nil},
		{"deep nesting", strings.Repeat("[", 100_000), nil},
	}
	base, err := emqxBase("http://mgmt.example.com:18083")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseEMQXNodes([]byte(tt.body), fsm.DefaultSpec(), base)
			if tt.want == nil {
				if ClassOf(err) != ClassBadAnswer || got != nil {
					t.Fatalf("got %v, %v, want a bad answer", got, err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Fatalf("%v, (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestEMQXBase(t *testing.T) {
	for raw, want := range map[string]string{
		"http://h:18083":         "http://h:18083/api/v5/nodes",
		"http://h:18083/":        "http://h:18083/api/v5/nodes",
		"https://h/emqx/api/v5/": "https://h/emqx/api/v5/nodes",
		"https://h/api/v5":       "https://h/api/v5/nodes",
		"http://[fd00::1]:18083": "http://[fd00::1]:18083/api/v5/nodes",
	} {
		u, err := emqxBase(raw)
		if err != nil || u.JoinPath("nodes").String() != want {
			t.Errorf("%s: got %v, %v, want %s", raw, u, err, want)
		}
	}
	if _, err := emqxBase("http://"); err == nil {
		t.Error("a URL without a host is taken")
	}
}

// fake returns the URL of a server that is closed with the test.
func fake(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func reply(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func TestEMQXMembers(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	good := fake(t, func(w http.ResponseWriter, r *http.Request) {
		key, secret, _ := r.BasicAuth()
		if r.Method != http.MethodGet || r.URL.Path != "/api/v5/nodes" || r.Header.Get("Accept") != "application/json" || key != "key" || secret != "s3cret" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		reply(200, nodes5)(w, r)
	})
	otherPath := fake(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/behind/proxy/nodes" {
			reply(200, nodes5)(w, r)
		}
	})
	html404 := fake(t, reply(404, "<html><body>s3cret-body</body></html>"))
	wrongKey := fake(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic Realm="emqx-dashboard"`)
		reply(401, `{"code":"BAD_API_KEY_OR_SECRET","message":"s3cret-body"}`)(w, r)
	})
	noHeader := fake(t, reply(401, `{"code":"AUTHORIZATION_HEADER_ERROR","message":"s3cret-body"}`))
	weakRole := fake(t, reply(403, `{"code":"UNAUTHORIZED_ROLE","message":"s3cret-body"}`))
	starting := fake(t, reply(503, ""))
	crash := fake(t, reply(500, `{"code":"INTERNAL_ERROR","message":"s3cret-body"}`))
	garbage := fake(t, reply(200, "\x00\x01s3cret-body"))
	empty := fake(t, reply(200, "[]"))
	oversize := fake(t, reply(200, "["+strings.Repeat(" ", maxBodyBytes)+"]"))
	redirect := fake(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, good+"/api/v5/nodes", http.StatusFound)
	})
	truncated := fake(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte("[{"))
	})
	hanging := fake(t, func(http.ResponseWriter, *http.Request) { <-hang })
	gone := httptest.NewServer(nil)
	gone.Close()

	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("key:s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		urls  []string
		ref   string
		class Class
	}{
		{"good", []string{good}, "", ""},
		{"another path", []string{otherPath + "/behind/proxy"}, "", ""},
		{"first URL is gone", []string{gone.URL, good}, "", ""},
		{"first URL starts up", []string{starting, good}, "", ""},
		{"first URL answers nonsense", []string{garbage, empty, html404, good}, "", ""},
		{"wrong key ends the round", []string{wrongKey, good}, "", ClassUnauthorized},
		{"header error", []string{noHeader}, "", ClassUnauthorized},
		{"weak role", []string{weakRole}, "", ClassUnauthorized},
		{"HTML 404", []string{html404}, "", ClassBadAnswer},
		{"503", []string{starting}, "", ClassServerError},
		{"500", []string{crash}, "", ClassServerError},
		{"garbage", []string{garbage}, "", ClassBadAnswer},
		{"empty", []string{empty}, "", ClassBadAnswer},
		{"oversize", []string{oversize}, "", ClassBadAnswer},
		{"redirect", []string{redirect}, "", ClassBadAnswer},
		{"cut short", []string{truncated}, "", ClassBadAnswer},
		{"gone", []string{gone.URL}, "", ClassUnreachable},
		{"the worst is told", []string{gone.URL, starting, html404}, "", ClassBadAnswer},
		{"metadata service", []string{"http://169.254.169.254/latest"}, "", ClassRefusedAddress},
		{"no credential", []string{good}, "env:TURNOUT_TEST_NONE", ClassNoCredential},
	}
	h := newHTTPClient(loopback(t))
	t.Cleanup(h.close)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("HTTP_PROXY", gone.URL)
			spec := emqxSpec(tt.urls...)
			spec.Credential = "file:" + key
			if tt.ref != "" {
				spec.Credential = tt.ref
			}
			members, err := newDriver(spec, h).Members(t.Context())
			if ClassOf(err) != tt.class || (len(members) == 4) != (tt.class == "") {
				t.Fatalf("got %v, %v, want class %q", members, err, tt.class)
			}
			if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "http://")) {
				t.Errorf("error tells too much: %v", err)
			}
		})
	}
	t.Run("hanging", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := newDriver(emqxSpec(hanging, good), h).Members(ctx); ClassOf(err) != ClassUnreachable {
			t.Fatalf("got %v", err)
		}
	})
}

func TestStaticMembers(t *testing.T) {
	spec := fsm.DefaultSpec()
	spec.Driver = fsm.DriverStatic
	spec.Addresses = map[fsm.NodeName]string{"b": "10.0.0.2:1883", "a": "10.0.0.1:1883"}
	got, err := newDriver(spec, nil).Members(t.Context())
	want := []Member{{Name: "a", State: fsm.NodeUp, Address: "10.0.0.1:1883"}, {Name: "b", State: fsm.NodeUp, Address: "10.0.0.2:1883"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v, (-want +got):\n%s", err, diff)
	}
	if _, err := (staticDriver{}).Members(t.Context()); ClassOf(err) != ClassBadAnswer {
		t.Fatalf("empty table: got %v", err)
	}
}
