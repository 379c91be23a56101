package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// result is what a command line came to.
type result struct {
	code           int
	stdout, stderr string
}

// run executes a command line as main does, with nothing of the test's own environment.
func run(t *testing.T, environ []string, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a := &app{
		stdin: strings.NewReader(stdin), stdout: &stdout, stderr: &stderr, environ: environ, release: "v1.2.3",
		signals: func() (<-chan os.Signal, func()) { return nil, func() {} },
	}
	code := a.main(t.Context(), args)
	return result{code, stdout.String(), stderr.String()}
}

// answer is what the fake gateway says to one request.
type answer struct {
	status int // 0 means 200
	header map[string]string
	body   any // JSON; a string is sent as it is
}

// gateway is an admin API that plays answers by method and escaped path, and writes down what it was asked.
type gateway struct {
	*httptest.Server
	mu      sync.Mutex
	answers map[string][]answer // the last one repeats
	asked   []string
}

func newGateway(t *testing.T, answers map[string][]answer) *gateway {
	g := &gateway{answers: answers}
	g.Server = httptest.NewServer(g)
	t.Cleanup(g.Close)
	return g
}

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "read", http.StatusBadRequest)
		return
	}
	line := r.Method + " " + r.URL.RequestURI()
	for _, h := range []string{"Authorization", "If-Match", "If-None-Match"} {
		if v := r.Header.Get(h); v != "" {
			line += fmt.Sprintf(" [%s: %s]", h, v)
		}
	}
	if len(body) > 0 {
		line += "\n" + strings.TrimSuffix(string(body), "\n")
	}
	g.mu.Lock()
	g.asked = append(g.asked, line)
	key := r.Method + " " + r.URL.EscapedPath()
	queue := g.answers[key]
	if len(queue) > 1 {
		g.answers[key] = queue[1:]
	}
	g.mu.Unlock()
	if len(queue) == 0 {
		http.Error(w, "the test has no answer for "+key, http.StatusTeapot)
		return
	}
	a := queue[0]
	for k, v := range a.header {
		w.Header().Set(k, v)
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
		if a.status >= 400 {
			w.Header().Set("Content-Type", "application/problem+json")
		}
	}
	if a.status != 0 {
		w.WriteHeader(a.status)
	}
	if text, ok := a.body.(string); ok {
		_, _ = io.WriteString(w, text)
		return
	}
	_ = json.NewEncoder(w).Encode(a.body)
}

// golden compares got with a file below testdata, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// transcript writes a run down as a golden file keeps it.
func transcript(g *gateway, args []string, r result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "$ turnout %s\n", strings.Join(args, " "))
	for _, line := range g.asked {
		fmt.Fprintf(&b, "> %s\n", strings.ReplaceAll(line, "\n", "\n> "))
	}
	fmt.Fprintf(&b, "exit %d\n-- stdout --\n%s-- stderr --\n%s", r.code, r.stdout, r.stderr)
	return strings.ReplaceAll(b.String(), g.URL, "http://gateway")
}

// writeFile puts text into a new file of the test and returns its path.
func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
