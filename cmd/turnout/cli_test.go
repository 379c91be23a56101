package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"turnout/api/client"
)

// TestMisuse checks that a command line without meaning ends with exit code 2 and one line, and asks no gateway.
func TestMisuse(t *testing.T) {
	tests := []struct {
		args []string
		want string // part of the line
	}{
		{[]string{"clusters"}, `turnout: unknown command "clusters" for "turnout"; Did you mean this? cluster`},
		{[]string{"cluster"}, "turnout: cluster: must be followed by one of: add, set, list, show, remove, node"},
		{[]string{"cluster", "nodes"}, "turnout: cluster: must be followed by one of"},
		{[]string{"cluster", "node"}, "turnout: cluster node: must be followed by one of: list, drain, undrain, remove"},
		{[]string{"cluster", "add"}, "turnout: cluster add: accepts 1 arg(s), received 0"},
		{[]string{"cluster", "add", "x", "--driver", "hivemq"}, `--driver" flag: must be emqx or static`},
		{[]string{"cluster", "add", "x", "--node", "a"}, "--node must be NAME=HOST:PORT"},
		{[]string{"cluster", "add", "x", "--node", "=h:1"}, "--node must be NAME=HOST:PORT"},
		{[]string{"cluster", "add", "x", "--node", "a=h:1", "--node", "a=h:2"}, "--node names a node twice"},
		{[]string{"cluster", "add", "x", "--url", "http://x", "--topic", "t/{key}"}, "--channel-url, --channel-credential and --topic need --channel"},
		{[]string{"cluster", "add", "x", "--port", "70000"}, "--port"},
		{[]string{"cluster", "list", "--output", "xml"}, `flag: must be table or json`},
		{[]string{"cluster", "remove", "x", "--wait", "some"}, `flag: must be all`},
		{[]string{"cluster", "list", "--token", "secret"}, "unknown flag: --token"},
		{[]string{"status", "--timeout", "0s"}, "--timeout must be more than 0"},
		{[]string{"device", "assign", "d"}, "accepts 2 arg(s), received 1"},
		{[]string{"device", "remove"}, "requires at least 1 arg(s)"},
		{[]string{"device", "list", "--limit", "0"}, "--limit must be at least 1"},
		{[]string{"device", "list", "--limit", "3", "--all"}, "[all limit] were all set"},
		{[]string{"device", "command", "d"}, "at least one of the flags in the group [payload payload-file]"},
		{[]string{"device", "command", "d", "--payload", "a", "--payload-file", "b"}, "[payload payload-file] were all set"},
		{[]string{"policy", "set"}, "accepts between 1 and 2 arg(s)"},
		{[]string{"policy", "set", "random"}, "must be refuse, cluster or weighted"},
		{[]string{"policy", "set", "cluster"}, "policy cluster needs the name of a cluster"},
		{[]string{"policy", "set", "refuse", "west"}, "only policy cluster takes the name of a cluster"},
		{[]string{"token", "new"}, `required flag(s) "name", "role" not set`},
		{[]string{"token", "new", "--name", "a\nb", "--role", "read"}, "--name must be printable text"},
		{[]string{"config", "check"}, "name the file, or set TURNOUT_CONFIG"},
		{[]string{"serve", "extra"}, "unknown command"},
		{[]string{"serve", "--expect", "many"}, "--expect"},
	}
	for _, tc := range tests {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			g := newGateway(t, nil)
			r := run(t, []string{"TURNOUT_URL=" + g.URL}, "", tc.args...)
			if r.code != exitUsage || r.stdout != "" {
				t.Errorf("exit code %d, stdout %q", r.code, r.stdout)
			}
			if !strings.Contains(r.stderr, tc.want) || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("stderr %q does not say %q in one line", r.stderr, tc.want)
			}
			if len(g.asked) > 0 {
				t.Errorf("the gateway was asked %q", g.asked)
			}
		})
	}
}

func TestNoServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + l.Addr().String()
	l.Close()
	for _, args := range [][]string{
		{"status"}, {"health"}, {"health", "--ready"}, {"device", "import", "-"}, {"device", "export"}, {"device", "assign", "d", "west"},
	} {
		r := run(t, nil, "{}\n", append(args, "--url", address)...)
		verb := strings.Join(slices.DeleteFunc(slices.Clone(args[:min(2, len(args))]), func(s string) bool { return s == "--ready" }), " ")
		if r.code != exitError || !strings.HasPrefix(r.stderr, "turnout: "+verb+": no answer from "+address+": dial tcp") ||
			!strings.HasSuffix(r.stderr, "connection refused\n") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%v: exit code %d, stderr %q", args, r.code, r.stderr)
		}
	}
}

func TestSlowServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it accepts in the kernel and never answers
	r := run(t, nil, "", "status", "--timeout", "50ms", "--url", "http://"+l.Addr().String())
	if r.code != exitError || !strings.Contains(r.stderr, "in time") {
		t.Errorf("exit code %d, stderr %q", r.code, r.stderr)
	}
}

// TestConnectionFlags checks that flags beat the environment and how tokens and certificates are read.
func TestConnectionFlags(t *testing.T) {
	plain := newGateway(t, map[string][]answer{"GET /v1/status": ok(status), "GET /healthz": ok("{}"), "PUT /v1/clusters/x": ok(written)})
	secure := &gateway{answers: plain.answers}
	secure.Server = httptest.NewUnstartedServer(secure)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // one client refuses its certificate
	secure.StartTLS()
	t.Cleanup(secure.Close)
	ca := writeFile(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
	token := writeFile(t, "token", "  sesame \n")
	other := writeFile(t, "other", "other\n")
	empty := writeFile(t, "empty", "\n")
	large := writeFile(t, "large", strings.Repeat("x", maxSecretFile+1))

	const nowhere = "http://127.0.0.1:1"
	tests := []struct {
		name    string
		environ []string
		args    string
		asked   string // what the gateway saw, "" for nothing
		stderr  string
	}{
		{"environment", []string{"TURNOUT_URL=" + plain.URL, "TURNOUT_TOKEN_FILE=" + token}, "status", "GET /v1/status [Authorization: Bearer sesame]", ""},
		{"flag beats environment", []string{"TURNOUT_URL=" + nowhere, "TURNOUT_TOKEN_FILE=" + other},
			"status --url " + plain.URL + " --token-file " + token, "GET /v1/status [Authorization: Bearer sesame]", ""},
		{"flag takes the token away", []string{"TURNOUT_URL=" + plain.URL, "TURNOUT_TOKEN_FILE=" + other}, "status --token-file=", "GET /v1/status", ""},
		{"cluster add has two URLs", []string{"TURNOUT_URL=" + nowhere}, "cluster add x --url http://broker --gateway-url " + plain.URL, "PUT /v1/clusters/x", ""},
		{"health needs no token", []string{"TURNOUT_URL=" + plain.URL, "TURNOUT_TOKEN_FILE=/nonexistent"}, "health", "GET /healthz", ""},
		{"no token file", []string{"TURNOUT_URL=" + plain.URL, "TURNOUT_TOKEN_FILE=/nonexistent"}, "status", "", "read token: open /nonexistent"},
		{"empty token file", []string{"TURNOUT_URL=" + plain.URL}, "status --token-file " + empty, "", "is empty"},
		{"token file too large", []string{"TURNOUT_URL=" + plain.URL}, "status --token-file " + large, "", "more than 1048576 bytes"},
		{"token of two lines", []string{"TURNOUT_URL=" + plain.URL}, "status --token-file " + writeFile(t, "two", "secret-a\nsecret-b"), "", "must be one line of text"},
		{"bad URL", nil, "status --url gateway:8080", "", "must be http://host:port or https://host:port"},
		{"certificate not trusted", nil, "status --url " + secure.URL, "", "certificate"},
		{"certificate trusted", []string{"TURNOUT_CA_FILE=" + ca}, "status --url " + secure.URL, "GET /v1/status", ""},
		{"no certificate in file", nil, "status --url " + secure.URL + " --ca-file " + token, "", "holds no PEM certificate"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			plain.asked, secure.asked = nil, nil
			r := run(t, tc.environ, "", strings.Fields(tc.args)...)
			asked := strings.Join(append(plain.asked, secure.asked...), "|")
			if !strings.HasPrefix(asked, tc.asked) || (tc.asked == "") != (asked == "") || tc.asked != "" && !strings.HasPrefix(tc.asked, "PUT") && asked != tc.asked {
				t.Errorf("asked %q, want %q", asked, tc.asked)
			}
			if (r.code == exitOK) != (tc.stderr == "") || !strings.Contains(r.stderr, tc.stderr) {
				t.Errorf("exit code %d, stderr %q, want %q", r.code, r.stderr, tc.stderr)
			}
			if strings.Contains(r.stdout+r.stderr, "sesame") || strings.Contains(r.stdout+r.stderr, "secret-") {
				t.Error("a token was shown")
			}
		})
	}
}

func TestCompletion(t *testing.T) {
	answers := map[string][]answer{
		"GET /v1/clusters":            ok(client.ClusterList{Items: []client.Cluster{lab, west}}),
		"GET /v1/clusters/west/nodes": ok(nodes),
		"GET /v1/gateways":            ok(gateways),
	}
	tests := []struct{ args, want string }{
		{"cluster show ", "lab west :4"},
		{"cluster show west ", ":4"},
		{"cluster node drain ", "lab west :4"},
		{"cluster node drain west ", "emqx@10.20.0.1 :4"}, // the name with an escape sequence is not offered
		{"device assign d ", "lab west :4"},
		{"device list --cluster ", "lab west :4"},
		{"policy set ", "refuse cluster weighted :4"},
		{"policy set cluster ", "lab west :4"},
		{"gateway remove ", "1-1 gw-1 1-2 gw-2 :4"},
		{"cluster add x --driver ", "emqx static :4"},
		{"status --output ", "table json :4"},
	}
	for _, tc := range tests {
		g := newGateway(t, answers)
		r := run(t, []string{"TURNOUT_URL=" + g.URL}, "", append([]string{"__complete"}, strings.Split(tc.args, " ")...)...)
		if got := strings.Join(strings.Fields(r.stdout), " "); got != tc.want {
			t.Errorf("%q completes to %q, want %q", tc.args, got, tc.want)
		}
	}
	r := run(t, []string{"TURNOUT_URL=http://127.0.0.1:1"}, "", "__complete", "cluster", "show", "")
	if r.code != exitOK || strings.TrimSpace(r.stdout) != ":1" {
		t.Errorf("without a gateway: exit code %d, %q", r.code, r.stdout)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := run(t, nil, "", "completion", shell); r.code != exitOK || !strings.Contains(r.stdout, "turnout") {
			t.Errorf("completion %s: exit code %d", shell, r.code)
		}
	}
}

func TestTokenNew(t *testing.T) {
	pattern := regexp.MustCompile(`^(turnout_[A-Za-z0-9_-]{43})\n- \{name: "ops: \\"x\\"", role: operate, sha256: ([0-9a-f]{64})\}\n$`)
	seen := map[string]bool{}
	for range 2 {
		r := run(t, nil, "", "token", "new", "--name", `ops: "x"`, "--role", "operate")
		m := pattern.FindStringSubmatch(r.stdout)
		if r.code != exitOK || m == nil {
			t.Fatalf("exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
		}
		if sum := sha256.Sum256([]byte(m[1])); hex.EncodeToString(sum[:]) != m[2] {
			t.Error("the hash is not that of the token")
		}
		if seen[m[1]] {
			t.Error("the same token twice")
		}
		seen[m[1]] = true
	}
}

func TestVersion(t *testing.T) {
	if r := run(t, nil, "", "version"); r.code != exitOK || !strings.HasPrefix(r.stdout, "turnout v1.2.3 (go1.") {
		t.Errorf("exit code %d, stdout %q", r.code, r.stdout)
	}
	if r := run(t, nil, "", "version", "-o", "json"); !strings.Contains(r.stdout, `"release": "v1.2.3"`) {
		t.Errorf("stdout %q", r.stdout)
	}
	if got := releaseOf("v9"); got != "v9" {
		t.Errorf("a linked release became %q", got)
	}
	if got := releaseOf("unknown"); got == "" {
		t.Error("no release at all")
	}
}

func TestHelp(t *testing.T) {
	r := run(t, nil, "")
	if r.code != exitOK || r.stderr != "" {
		t.Fatalf("exit code %d, stderr %q", r.code, r.stderr)
	}
	for _, verb := range []string{"serve", "config", "cluster", "device", "policy", "settings", "gateway", "status", "health", "version", "completion", "token"} {
		if !strings.Contains(r.stdout, "\n  "+verb+" ") {
			t.Errorf("help does not name %s", verb)
		}
	}
}

func TestCell(t *testing.T) {
	for in, want := range map[string]string{
		"": "-", "meter/0001": "meter/0001", "gerät 7": "gerät 7", "a\tb": `"a\tb"`, "\x1b[0m": `"\x1b[0m"`, "\xff": `"\xff"`,
		`"quoted"`: `"\"quoted\""`, " lead": `" lead"`, "\u202eevil": `"\u202eevil"`, "a\u2028b": `"a\u2028b"`,
	} {
		if got := cell(in); got != want {
			t.Errorf("cell(%q) = %s, want %s", in, got, want)
		}
	}
}

// errorReader gives text and then an error.
type errorReader struct{ text *strings.Reader }

func (r errorReader) Read(p []byte) (int, error) {
	if r.text.Len() > 0 {
		return r.text.Read(p)
	}
	return 0, os.ErrDeadlineExceeded
}

// TestImportSources checks what is told apart, counted and bounded on the way to the gateway.
func TestImportSources(t *testing.T) {
	t.Run("progress", func(t *testing.T) {
		g := newGateway(t, map[string][]answer{"POST /v1/devices:import": ok(client.ImportResult{Accepted: 250_000, LastCommittedLine: 250_000})})
		file := writeFile(t, "devices.ndjson", strings.Repeat("{\"key\":\"a\"}\n", 250_000))
		r := run(t, nil, "", "device", "import", file, "--url", g.URL)
		want := "turnout: device import: 100000 lines sent\nturnout: device import: 200000 lines sent\n"
		if r.code != exitOK || r.stderr != want || r.stdout != "250000 devices written, last committed line 250000\n" {
			t.Errorf("exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
		}
	})
	t.Run("connection breaks off", func(t *testing.T) {
		g := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		}))
		defer g.Close()
		r := run(t, nil, "{\"key\":\"a\"}\n", "device", "import", "-", "--url", g.URL)
		if r.code != exitError || !strings.HasPrefix(r.stderr, "turnout: device import: no answer from "+g.URL) || !strings.Contains(r.stderr, "committed is not known") {
			t.Errorf("exit code %d, stderr %q", r.code, r.stderr)
		}
	})
	t.Run("input breaks off", func(t *testing.T) {
		for _, text := range []string{"{\"key\":\"a\"}\n", "key\na\n"} {
			s, err := newLineSource(errorReader{strings.NewReader(text)})
			if err != nil {
				t.Fatal(err)
			}
			p := &progressReader{from: s, report: func(int) {}}
			sent, err := readAll(p)
			if err != nil || !strings.Contains(sent, `{"key":"a"}`) {
				t.Errorf("sent %q, %v", sent, err)
			}
			if s.Err() == nil {
				t.Error("the input was taken for complete")
			}
		}
	})
	t.Run("quote not closed", func(t *testing.T) {
		s, err := newLineSource(strings.NewReader("key\na\n\"" + strings.Repeat("b\n", 10*maxRecord)))
		if err != nil {
			t.Fatal(err)
		}
		sent, err := readAll(s)
		if err != nil || sent != "\n{\"key\":\"a\"}\n" {
			t.Errorf("sent %q, %v", sent, err)
		}
		if s.Err() == nil || !strings.Contains(s.Err().Error(), "is a quote not closed?") {
			t.Errorf("error %v", s.Err())
		}
	})
	t.Run("many records", func(t *testing.T) {
		var in, want strings.Builder
		in.WriteString("key\n")
		want.WriteString("\n")
		for i := range 50_000 {
			fmt.Fprintf(&in, "d%d\n", i)
			fmt.Fprintf(&want, "{\"key\":\"d%d\"}\n", i)
		}
		s, err := newLineSource(strings.NewReader(in.String()))
		if err != nil {
			t.Fatal(err)
		}
		if sent, err := readAll(s); err != nil || s.Err() != nil || sent != want.String() {
			t.Errorf("%d bytes, want %d; %v, %v", len(sent), want.Len(), err, s.Err())
		}
	})
	t.Run("told apart", func(t *testing.T) {
		for text, ndjson := range map[string]bool{"": true, " \n": true, "\n {\"key\":1}": true, "\ufeff{}": true, "key\n": false, "\n\nkey\n": false} {
			s, err := newLineSource(strings.NewReader(text))
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if _, is := s.(*ndjsonSource); is != ndjson {
				t.Errorf("%q: NDJSON %v", text, is)
			}
		}
		if _, err := newLineSource(strings.NewReader(strings.Repeat(" ", 1<<20))); err == nil {
			t.Error("endless white space was taken")
		}
	})
}

// readAll reads to the end, byte by byte.
func readAll(r io.Reader) (string, error) {
	b, err := io.ReadAll(iotest.OneByteReader(r))
	return string(b), err
}

func TestOverlay(t *testing.T) {
	got := overlay([]string{"PATH=/bin", "TURNOUT_NAME=old", "TURNOUT_name=older", "TURNOUT_PEER={}"}, []string{`TURNOUT_NAME="new"`})
	if want := []string{"PATH=/bin", "TURNOUT_PEER={}", `TURNOUT_NAME="new"`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
