package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"turnout/api/client"
	"turnout/test/harness/fleet"
)

// codeOf is the code of a problem document, empty for any other error.
func codeOf(err error) string {
	var p *client.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

// importLine is the n-th line of an import; the key carries the number.
func importLine(prefix string, n int) string {
	return fmt.Sprintf(`{"key":"%s%05d","cluster":"west"}`+"\n", prefix, n)
}

// imported checks that a gateway has exactly the lines up to last.
func (w *world) imported(t *testing.T, g *fleet.Gateway, prefix string, last int) {
	t.Helper()
	got := map[string]bool{}
	for d, err := range g.API().ExportDevices(w.ctx, client.DeviceQuery{Prefix: prefix}) {
		if err != nil {
			t.Fatal(err)
		}
		got[d.Key] = true
	}
	for n := 1; n <= last; n++ {
		if key := fmt.Sprintf("%s%05d", prefix, n); !got[key] {
			t.Errorf("%s: line %d of %d is missing", g.Name, n, last)
			return
		}
	}
	if len(got) != last {
		t.Errorf("%s: %d lines are in the tables, want %d", g.Name, len(got), last)
	}
}

// west adds the cluster that import lines name.
func (w *world) west() {
	w.t.Helper()
	spec := client.ClusterSpec{Driver: "static", Addresses: map[string]string{"one": "127.0.0.1:1"}}
	if _, err := w.operator().PutCluster(w.ctx, "west", spec, client.WriteOptions{WaitAll: true}); err != nil {
		w.t.Fatal(err)
	}
}

// TestImportStopsAtABadLine imports 2500 lines of which one is bad, through a follower and through the leader. The answer names the line, its
// field, and the last committed line; the tables hold exactly the lines up to that one.
func TestImportStopsAtABadLine(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.west()
	for i, tt := range []struct {
		name, text string
		line       int
		status     int
		location   string
		last       int
	}{
		{"bad JSON in the first batch", `{"key":"` + marker, 1, 400, "line", 0},
		{"bad JSON in the third batch", `{"key":"` + marker, 2100, 400, "line", 2000},
		{"bad JSON behind a full batch", marker, 1001, 400, "line", 1000},
		{"bad JSON in the last line", marker, 2500, 400, "line", 2000},
		{"duplicate key", `{"key":"` + marker + `","key":"` + marker + `"}`, 1500, 400, "line.key", 1000},
		{"unknown field", `{"key":"` + marker + `","colour":"` + marker + `"}`, 1500, 422, "line.colour", 1000},
		{"unknown cluster", `{"key":"` + marker + `","cluster":"` + marker + `"}`, 1500, 422, "line.cluster", 1000},
		{"unknown cluster in the third batch", `{"key":"` + marker + `","cluster":"` + marker + `"}`, 2400, 422, "line.cluster", 2000},
		{"unknown node", `{"key":"` + marker + `","cluster":"west","pin":"` + marker + `"}`, 2, 422, "line.pin", 0},
		{"no key", `{"cluster":"west","pin":"` + marker + `"}`, 1001, 422, "line.key", 1000},
		{"over-long key", `{"key":"` + strings.Repeat(marker, 30) + `"}`, 1002, 422, "line.key", 1000},
		{"over-long line", `{"key":"` + strings.Repeat(marker, 1<<10) + `"}`, 1002, 413, "line", 1000},
		{"no UTF-8", `{"key":"` + marker + "\xff\"}", 1002, 400, "line", 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, g := range w.fleet.Gateways() {
				prefix := fmt.Sprintf("%s/%02d/", g.Name, i)
				var body strings.Builder
				for n := 1; n <= 2500; n++ {
					if n == tt.line {
						body.WriteString(tt.text + "\n")
					} else {
						body.WriteString(importLine(prefix, n))
					}
				}
				got, err := g.API().ImportDevices(w.ctx, strings.NewReader(body.String()), client.WriteOptions{})
				var p *client.Problem
				switch {
				case !errors.As(err, &p):
					t.Fatalf("%s: %v is no refusal", g.Name, err)
				case p.Status != tt.status || len(p.Errors) != 1 || p.Errors[0].Location != tt.location:
					t.Errorf("%s: want %d at %s, got %v", g.Name, tt.status, tt.location, p)
				case got.Line != tt.line || got.LastCommittedLine != tt.last || got.Accepted != tt.last:
					t.Errorf("%s: %+v, want line %d, last committed %d", g.Name, got, tt.line, tt.last)
				case strings.Contains(fmt.Sprintf("%+v", *p), marker):
					t.Errorf("%s: a value is echoed: %v", g.Name, p)
				}
				w.imported(t, g, prefix, tt.last)
			}
		})
	}
}

// TestImportCutByLossOfLeader takes the quorum away in the middle of an import: it ends with 503, Retry-After and the last committed line, and
// when the quorum is back every gateway has exactly the lines up to there. The rest then goes in.
func TestImportCutByLossOfLeader(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.west()
	gateways := w.fleet.Gateways()
	last := gateways[w.rand.IntN(3)]
	lines := func(from, to int) []byte {
		var b bytes.Buffer
		for n := from; n <= to; n++ {
			b.WriteString(importLine("cut/", n))
		}
		return b.Bytes()
	}
	body, feed := io.Pipe()
	t.Cleanup(func() { _ = feed.Close() })
	type outcome struct {
		result client.ImportResult
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := last.API().ImportDevices(w.ctx, body, client.WriteOptions{})
		_ = body.CloseWithError(io.ErrClosedPipe)
		done <- outcome{r, err}
	}()
	if _, err := feed.Write(lines(1, 2500)); err != nil {
		t.Fatal(err)
	}
	w.eventually("two batches in the tables", func() (bool, string) {
		s, err := last.API().Status(w.ctx)
		return s.Devices == 2000, fmt.Sprint(s.Devices, " devices, ", err)
	})
	for _, g := range gateways {
		if g != last {
			if err := g.Stop(w.ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.leaderless(last.API())
	go func() {
		_, _ = feed.Write(lines(2501, 4500)) // the import may end before it has read all of it
		_ = feed.Close()
	}()
	got := <-done
	var p *client.Problem
	if !errors.As(got.err, &p) || p.Status != 503 || p.Code != client.CodeNoLeader || p.RetryAfter < time.Second {
		t.Fatalf("import without a leader: %v", got.err)
	}
	if got.result.LastCommittedLine != 2000 || got.result.Accepted != 2000 || got.result.Line != 0 {
		t.Errorf("%+v, want last committed line 2000 and no line to blame", got.result)
	}

	if err := w.fleet.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	w.sameTables()
	for _, g := range gateways {
		w.imported(t, g, "cut/", got.result.LastCommittedLine)
	}
	rest, err := last.API().ImportDevices(w.ctx, bytes.NewReader(lines(got.result.LastCommittedLine+1, 4500)), client.WriteOptions{WaitAll: true})
	if err != nil || rest.LastCommittedLine != 2500 {
		t.Fatalf("the rest: %+v, %v", rest, err)
	}
	for _, g := range gateways {
		w.imported(t, g, "cut/", 4500)
	}
}

// TestNoLeader takes the quorum away: every kind of write is refused as not written, with a hint when to come again, and reading goes on.
func TestNoLeader(t *testing.T) {
	o := newOffice(t)
	gateways := o.fleet.Gateways()
	last := gateways[2]
	admin := o.as(last, "admin")
	for _, name := range []string{"west", "east"} {
		spec := client.ClusterSpec{Driver: "static", Addresses: map[string]string{"one": "127.0.0.1:1"}}
		if _, err := admin.PutCluster(o.ctx, name, spec, client.WriteOptions{WaitAll: true}); err != nil {
			t.Fatal(err)
		}
	}
	o.eventually("the node", func() (bool, string) {
		nodes, err := admin.Nodes(o.ctx, "west")
		return len(nodes) == 1, fmt.Sprint(err)
	})
	if _, err := admin.PutDevice(o.ctx, "pump", client.DevicePut{Cluster: "west"}, client.WriteOptions{WaitAll: true}); err != nil {
		t.Fatal(err)
	}
	for _, g := range gateways[:2] {
		if err := g.Stop(o.ctx); err != nil {
			t.Fatal(err)
		}
	}
	o.leaderless(admin)
	lines := http.Header{"Content-Type": {"application/x-ndjson"}}
	writes := []letter{
		{"PUT", "/v1/clusters/west", `{"driver":"static","addresses":{"one":"` + marker + `:1"}}`, nil},
		{"DELETE", "/v1/clusters/east", "", nil},
		{"PATCH", "/v1/clusters/west/nodes/one", `{"draining":true}`, nil},
		{"PUT", "/v1/devices/" + marker, `{"cluster":"west"}`, nil},
		{"PATCH", "/v1/devices/pump", `{"blocked":true}`, nil},
		{"DELETE", "/v1/devices/pump", "", nil},
		{"PUT", "/v1/policy", `{"policy":"weighted"}`, nil},
		{"PATCH", "/v1/settings", `{"identity":"{username}","force":true}`, nil},
		{"POST", "/v1/devices:import", `{"key":"` + marker + `","cluster":"west"}`, lines},
	}
	var wg sync.WaitGroup
	for _, l := range writes { // at once: each is held for a while in the hope of a leader
		wg.Go(func() {
			a, err := o.post(last, officeTokens["admin"], l)
			if err == nil {
				err = a.check(http.StatusServiceUnavailable, "")
			}
			seconds, bad := strconv.Atoi(a.header.Get("Retry-After"))
			switch {
			case err != nil:
				t.Errorf("%s %s: %v", l.method, l.path, err)
			case a.problem.Code != client.CodeNoLeader || bad != nil || seconds < 1:
				t.Errorf("%s %s: code %s, Retry-After %q", l.method, l.path, a.problem.Code, a.header.Get("Retry-After"))
			case l.header != nil && (a.problem.Import == nil || a.problem.Import.LastCommittedLine != 0):
				t.Errorf("import: %s", a.body)
			}
		})
	}
	wg.Wait()
	for _, path := range []string{"/v1/clusters", "/v1/devices", "/v1/devices/pump/route", "/v1/policy", "/v1/gateways", "/v1/status", "/metrics"} {
		if a, err := o.post(last, officeTokens["read"], letter{method: "GET", path: path}); err != nil || a.status != http.StatusOK {
			t.Errorf("GET %s: %d, %v", path, a.status, err)
		}
	}

	if err := o.fleet.Start(o.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.PutDevice(o.ctx, "again", client.DevicePut{Cluster: "east"}, client.WriteOptions{WaitAll: true}); err != nil {
		t.Errorf("write with quorum again: %v", err)
	}
	if d, err := admin.Device(o.ctx, "pump"); err != nil || d.Blocked {
		t.Errorf("a refused write was written: %+v, %v", d, err)
	}
	if _, err := admin.Device(o.ctx, marker); !isNotFound(err) {
		t.Errorf("a refused write was written: %v", err)
	}
	if p, err := admin.Policy(o.ctx); err != nil || p.Policy != "refuse" {
		t.Errorf("a refused write was written: %+v, %v", p, err)
	}
}

// leaderless waits until a gateway knows that there is no leader; until then a write may have an unknown outcome.
func (w *world) leaderless(c *client.Client) {
	w.t.Helper()
	blocked := true
	w.eventually("no leader", func() (bool, string) {
		ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
		defer cancel()
		_, err := c.PatchDevice(ctx, "probe", client.DevicePatch{Blocked: &blocked}, client.WriteOptions{})
		return codeOf(err) == client.CodeNoLeader, fmt.Sprint(err)
	})
}
