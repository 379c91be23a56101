package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"turnout/node"
)

// waitLimit bounds every wait on a condition.
const waitLimit = 30 * time.Second

// keepOpen is a file for a gateway that talks to nobody and takes free ports.
const keepOpen = `name: gw-file
listeners:
  - {name: mqtt, address: "127.0.0.1:0"}
api: {address: "127.0.0.1:0"}
peer: {address: "127.0.0.1:0", gossip_address: "127.0.0.1:0"}
`

// lines collects output and hands on each complete line.
type lines struct {
	mu   sync.Mutex
	text string
	out  chan string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text += string(p)
	for {
		line, rest, ok := strings.Cut(l.text, "\n")
		if !ok {
			return len(p), nil
		}
		l.text = rest
		l.out <- line
	}
}

// server is a `turnout serve` that runs inside the test.
type server struct {
	signals chan os.Signal
	stdout  *lines
	stderr  *lines
	done    chan int
	log     []string
}

func startServe(t *testing.T, args ...string) *server {
	s := &server{signals: make(chan os.Signal, 4), stdout: &lines{out: make(chan string, 100)}, stderr: &lines{out: make(chan string, 100_000)}, done: make(chan int, 1)}
	a := &app{
		stdin: strings.NewReader(""), stdout: s.stdout, stderr: s.stderr, release: "v1.2.3",
		signals: func() (<-chan os.Signal, func()) { return s.signals, func() {} },
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { s.done <- a.main(ctx, append([]string{"serve"}, args...)) }()
	t.Cleanup(cancel)
	return s
}

// next waits for a line on a stream.
func (s *server) next(t *testing.T, from *lines, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.After(waitLimit)
	for {
		select {
		case line := <-from.out:
			s.log = append(s.log, line)
			if m := re.FindStringSubmatch(line); m != nil {
				return m
			}
		case <-limit:
			t.Fatalf("no line like %q in\n%s", pattern, strings.Join(s.log, "\n"))
		}
	}
}

func (s *server) wait(t *testing.T) int {
	t.Helper()
	select {
	case code := <-s.done:
		return code
	case <-time.After(waitLimit):
		t.Fatalf("serve did not end\n%s", strings.Join(s.log, "\n"))
		return -1
	}
}

// eventually repeats a command line until it succeeds and says what is wanted.
func eventually(t *testing.T, environ []string, want string, args ...string) {
	t.Helper()
	deadline := time.Now().Add(waitLimit)
	for {
		r := run(t, environ, "", args...)
		if r.code == exitOK && strings.Contains(r.stdout, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v: exit code %d, stdout %q, stderr %q", args, r.code, r.stdout, r.stderr)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestServe runs a gateway as a process would, works with it through the other verbs, stops it by signal and finds everything again.
func TestServe(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	file := writeFile(t, "turnout.yaml", keepOpen)
	dir := t.TempDir()
	const banner = `^turnout: gw-flag serves mqtt=127\.0\.0\.1:[1-9]\d* api=(127\.0\.0\.1:[1-9]\d*) peer=127\.0\.0\.1:[1-9]\d* gossip=127\.0\.0\.1:[1-9]\d*$`

	s := startServe(t, "--config", file, "--name", "gw-flag", "--data-dir", dir)
	api := s.next(t, s.stdout, banner)[1]
	environ := []string{"TURNOUT_URL=http://" + api}
	eventually(t, environ, "healthy", "health")
	eventually(t, environ, "ready", "health", "--ready")

	bad := writeFile(t, "bad.csv", "cluster,key\nlab,a\neast,b\nlab,c\n")
	csv := writeFile(t, "devices.csv", "key,cluster,pin,blocked\nmeter/1,lab,,\n\"meter,2\",lab,b,\nmeter 3,,,true\n")
	for _, step := range []struct {
		args []string
		want string // in the answer
	}{
		{[]string{"cluster", "add", "lab", "--node", "a=127.0.0.1:1884", "--node", "b=127.0.0.1:1885", "--wait", "all"}, "cluster lab added\n"},
		{[]string{"cluster", "list"}, "lab   static"},
		{[]string{"device", "assign", "../%2f", "lab"}, "device ../%2f assigned to lab\n"},
		{[]string{"device", "get", "../%2f"}, "cluster  lab"},
	} {
		if r := run(t, environ, "", step.args...); r.code != exitOK || !strings.Contains(r.stdout, step.want) {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", step.args, r.code, r.stdout, r.stderr)
		}
	}
	// Discovery is a leader duty of its own pace; a pin needs the node.
	eventually(t, environ, "assigned", "device", "assign", "pinned", "lab", "--pin", "b")
	eventually(t, environ, "gw-flag", "gateway", "list")
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"device", "import", csv}, "3 devices written, last committed line 4\n"},
		{[]string{"device", "export", "--prefix", "meter,"}, `{"key":"meter,2","cluster":"lab","pin":"b"`},
		{[]string{"device", "list", "--all", "-o", "json"}, `"key": "meter/1"`},
		{[]string{"device", "route", "meter,2"}, "pin"},
		{[]string{"cluster", "show", "lab"}, "127.0.0.1:1885"},
		{[]string{"policy", "set", "cluster", "lab"}, "cluster lab"},
		{[]string{"policy", "show"}, "cluster  lab"},
		{[]string{"cluster", "node", "drain", "lab", "a"}, "draining"},
		{[]string{"settings", "show"}, "{client_id}"},
		{[]string{"status"}, "v1.2.3"},
		{[]string{"device", "remove", "pinned"}, "removed"},
	} {
		if r := run(t, environ, "", step.args...); r.code != exitOK || !strings.Contains(r.stdout, step.want) {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", step.args, r.code, r.stdout, r.stderr)
		}
	}
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"cluster", "add", "lab", "--node", "a=127.0.0.1:1884"}, "turnout: cluster add: 412 conflict"},
		{[]string{"cluster", "add", "west", "--url", "ftp://x"}, "management_urls[0]"},
		{[]string{"cluster", "remove", "lab"}, "turnout: cluster remove: 409 in_use"},
		{[]string{"device", "get", "nobody"}, "turnout: device get: 404 not_found"},
		{[]string{"device", "assign", "d", "east"}, "turnout: device assign: 4"},
		{[]string{"device", "import", bad}, "stopped at line 3; last committed line 0"},
		{[]string{"device", "command", "meter/1", "--payload", "x"}, "turnout: device command: the command was not delivered: rejected"},
	} {
		if r := run(t, environ, "", step.args...); r.code != exitError || !strings.Contains(r.stderr, step.want) {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", step.args, r.code, r.stdout, r.stderr)
		}
	}
	text := get(t, "http://"+api+"/metrics")
	for _, name := range []string{"turnout_library_raft_", "turnout_library_memberlist_", "go_goroutines", "process_open_fds", "turnout_raft_"} {
		if !strings.Contains(text, "\n"+name) {
			t.Errorf("there is no metric %s…", name)
		}
	}
	export := run(t, environ, "", "device", "export").stdout

	s.signals <- syscall.SIGHUP
	s.next(t, s.stderr, `reloaded`)
	eventually(t, environ, "healthy", "health")
	s.signals <- syscall.SIGTERM
	if code := s.wait(t); code != exitOK {
		t.Fatalf("exit code %d\n%s", code, strings.Join(s.log, "\n"))
	}
	if r := run(t, environ, "", "health"); r.code != exitError {
		t.Error("the port is still open")
	}

	s = startServe(t, "--config", file, "--name", "gw-flag", "--data-dir", dir)
	environ = []string{"TURNOUT_URL=http://" + s.next(t, s.stdout, banner)[1]}
	eventually(t, environ, "ready", "health", "--ready")
	if diff := cmp.Diff(export, run(t, environ, "", "device", "export").stdout); diff != "" {
		t.Errorf("after a restart (-before +after):\n%s", diff)
	}
	s.signals <- os.Interrupt
	if code := s.wait(t); code != exitOK {
		t.Fatalf("exit code %d\n%s", code, strings.Join(s.log, "\n"))
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: waitLimit}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestServeStopsWhileStarting stops a gateway that waits for two others.
func TestServeStopsWhileStarting(t *testing.T) {
	file := writeFile(t, "turnout.yaml", keepOpen)
	s := startServe(t, "--config", file, "--data-dir", t.TempDir(), "--expect", "3")
	s.signals <- syscall.SIGTERM
	if code := s.wait(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestServeRefusals checks that what cannot serve says so in one line.
func TestServeRefusals(t *testing.T) {
	file := writeFile(t, "turnout.yaml", keepOpen)
	notDir := writeFile(t, "file", "")
	for _, tc := range []struct{ args, want string }{
		{"serve --config /nonexistent.yaml", "turnout: serve: open configuration: open /nonexistent.yaml"},
		{"serve --config " + file + " --expect 2", "peer.expect"},
		{"serve --config " + file + " --api 0.0.0.0:0", "api.tls"},
		{"serve --config " + file + " --data-dir " + filepath.Join(notDir, "sub"), "not a directory"},
		{"serve --config " + file + " --log-level loud", "log.level"},
	} {
		r := run(t, nil, "", strings.Fields(tc.args)...)
		if r.code != exitError || !strings.Contains(r.stderr, tc.want) || r.stdout != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", tc.args, r.code, r.stdout, r.stderr)
		}
	}
}

// hung does not close until it is told to.
type hung chan struct{}

func (h hung) Close(context.Context) error { <-h; return nil }

func TestSecondSignal(t *testing.T) {
	h, signals := make(hung), make(chan os.Signal, 2)
	signals <- syscall.SIGHUP // means nothing while closing
	signals <- syscall.SIGTERM
	if err := closeNode(h, nil, signals); !errors.Is(err, errForced) {
		t.Errorf("error %v", err)
	}
	close(h)
	if err := closeNode(h, nil, signals); err != nil {
		t.Errorf("error %v", err)
	}
}

// TestServeConfiguration follows the flags of serve through the environment into the configuration.
func TestServeConfiguration(t *testing.T) {
	file := writeFile(t, "turnout.yaml", "name: file\nzone: file\ndata_dir: /file\npeer: {expect: 1, join: [\"f:1\"]}\n")
	environ := []string{"TURNOUT_NAME=env", "TURNOUT_DATA_DIR=/env", "TURNOUT_PEER__EXPECT=3", "TURNOUT_URL=http://x", "TURNOUT_CONFIG=" + file, "OTHER=1"}
	load := func(args ...string) node.Config {
		t.Helper()
		c := &cobra.Command{}
		read := (&app{environ: environ}).configFlags(c)
		if err := c.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		cfg, err := read()
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	c := load()
	if c.Name != "env" || c.Zone != "file" || c.DataDir != "/env" || c.Peer.Expect != 3 || !cmp.Equal(c.Peer.Join, []string{"f:1"}) {
		t.Errorf("environment over file: %+v", c)
	}
	c = load("--name", "007: [x", "--data-dir", "/flag", "--api", "[::1]:8081", "--peer", "127.0.0.1:7500", "--join", "a:1,b:2", "--join", "[::1]:3", "--expect", "5", "--log-level", "debug")
	if c.Name != "007: [x" || c.DataDir != "/flag" || c.API.Address != "[::1]:8081" || c.Peer.Address != "127.0.0.1:7500" || c.Peer.Expect != 5 || c.Log.Level != "debug" ||
		!cmp.Equal(c.Peer.Join, []string{"a:1", "b:2", "[::1]:3"}) {
		t.Errorf("flags over environment: %+v", c)
	}
	if c = load("--config", writeFile(t, "other.yaml", "zone: other")); c.Zone != "other" {
		t.Errorf("--config does not beat TURNOUT_CONFIG: %+v", c)
	}
}

func TestConfigCheck(t *testing.T) {
	good := writeFile(t, "good.yaml", keepOpen)
	for _, tc := range []struct {
		text    string
		environ []string
		want    string
	}{
		{"name: gw-1\napi:\n  adress: x\n", nil, "line 3: "},
		{"name: gw-1\nnaem: gw-2\n", nil, "line 2: "},
		{"name: [\n", nil, "line "},
		{"api: {address: \"0.0.0.0:8080\"}\n", nil, "api.tokens_file"},
		{"name: gw-1\n", []string{"TURNOUT_NAEM=x"}, "TURNOUT_NAEM"},
	} {
		r := run(t, tc.environ, "", "config", "check", writeFile(t, "bad.yaml", tc.text))
		if r.code != exitError || r.stdout != "" || !strings.HasPrefix(r.stderr, "turnout: config check: ") || !strings.Contains(r.stderr, tc.want) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, stderr %q", tc.text, r.code, r.stderr)
		}
	}
	for _, args := range [][]string{{"config", "check", good}, {"config", "check"}} {
		if r := run(t, []string{"TURNOUT_CONFIG=" + good}, "", args...); r.code != exitOK || r.stdout != "ok\n" {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, r.code, r.stdout, r.stderr)
		}
	}
}

// TestConfigShow checks that what is shown is a configuration that means the same.
func TestConfigShow(t *testing.T) {
	good := writeFile(t, "good.yaml", keepOpen)
	first := run(t, []string{"TURNOUT_ZONE=east"}, "", "config", "show", good)
	if first.code != exitOK || !strings.Contains(first.stdout, "name: gw-file\n") || !strings.Contains(first.stdout, "zone: east\n") {
		t.Fatalf("exit code %d, stdout %q, stderr %q", first.code, first.stdout, first.stderr)
	}
	second := run(t, nil, "", "config", "show", writeFile(t, "shown.yaml", first.stdout))
	if diff := cmp.Diff(first.stdout, second.stdout); diff != "" {
		t.Errorf("shown again (-first +second):\n%s\n%s", diff, second.stderr)
	}
}
