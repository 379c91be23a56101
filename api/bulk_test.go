package api_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"turnout/api/client"
	"turnout/fsm"
)

// lines makes n import lines for the keys k00001 ..., of which the bad ones are replaced.
func lines(n int, bad map[int]string) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		if text, ok := bad[i]; ok {
			b.WriteString(text)
		} else {
			fmt.Fprintf(&b, `{"key":"k%05d","cluster":"west"}`, i)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestImport(t *testing.T) {
	long := func(n int) string { return `{"key":"k","cluster":"` + strings.Repeat("a", n-24) + `"}` }
	for _, tt := range []struct {
		name, body string
		want       client.ImportResult
		status     int
		location   string
		message    string
	}{
		{"nothing", "", client.ImportResult{}, 0, "", ""},
		{"one", lines(1, nil), client.ImportResult{Accepted: 1, LastCommittedLine: 1}, 0, "", ""},
		{"no newline at the end", strings.TrimSuffix(lines(3, nil), "\n"), client.ImportResult{Accepted: 3, LastCommittedLine: 3}, 0, "", ""},
		{"empty lines and CRLF", "\r\n\n" + strings.ReplaceAll(lines(2, nil), "\n", "\r\n") + "\n", client.ImportResult{Accepted: 2, LastCommittedLine: 5}, 0, "", ""},
		{"many batches", lines(2500, nil), client.ImportResult{Accepted: 2500, LastCommittedLine: 2500}, 0, "", ""},
		{"bad JSON in the third batch", lines(2500, map[int]string{2100: `{"key":`}), client.ImportResult{Accepted: 2000, LastCommittedLine: 2000, Line: 2100}, 400, "line", ""},
		{"unknown cluster in the second", lines(2500, map[int]string{1500: `{"key":"x","cluster":"nowhere"}`}), client.ImportResult{Accepted: 1000, LastCommittedLine: 1000, Line: 1500}, 422, "line.cluster", ""},
		{"unknown node", lines(2, map[int]string{2: `{"key":"x","cluster":"west","pin":"w9"}`}), client.ImportResult{Line: 2}, 422, "line.pin", ""},
		{"no such name", lines(2, map[int]string{2: `{"key":"x","cluster":"West!"}`}), client.ImportResult{Line: 2}, 422, "line.cluster", ""},
		{"unknown field", lines(2, map[int]string{1: `{"key":"x","colour":1}`}), client.ImportResult{Line: 1}, 422, "line.colour", ""},
		{"duplicate member", lines(2, map[int]string{1: `{"key":"x","key":"y"}`}), client.ImportResult{Line: 1}, 400, "line.key", ""},
		{"wrong type", lines(2, map[int]string{1: `{"key":7}`}), client.ImportResult{Line: 1}, 422, "line.key", ""},
		{"null", lines(2, map[int]string{1: `{"key":"x","cluster":null}`}), client.ImportResult{Line: 1}, 422, "line.cluster", ""},
		{"no key", lines(2, map[int]string{2: `{"cluster":"west"}`}), client.ImportResult{Line: 2}, 422, "line.key", ""},
		{"key too long", lines(2, map[int]string{2: `{"key":"` + strings.Repeat("k", 257) + `"}`}), client.ImportResult{Line: 2}, 422, "line.key", ""},
		{"two values", lines(2, map[int]string{2: `{"key":"x"}{"key":"y"}`}), client.ImportResult{Line: 2}, 400, "line", ""},
		{"line at the bound", lines(2, map[int]string{2: long(8<<10 - 1)}), client.ImportResult{Line: 2}, 422, "line.cluster", ""},
		{"line over the bound", lines(2500, map[int]string{1100: long(8 << 10)}), client.ImportResult{Accepted: 1000, LastCommittedLine: 1000, Line: 1100}, 413, "line", ""},
		{"endless line", strings.Repeat("a", 1<<20), client.ImportResult{Line: 1}, 413, "line", ""},
		{"behind the bad line", lines(1, map[int]string{1: "nonsense"}) + lines(60000, nil), client.ImportResult{Line: 1}, 400, "line", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newRig(t)
			g.west(t)
			got, err := g.client(t, "").ImportDevices(t.Context(), strings.NewReader(tt.body), client.WriteOptions{})
			if tt.status == 0 {
				ok(t, got, err)
			} else {
				p := problemOf(t, err)
				if p.Status != tt.status || len(p.Errors) != 1 || p.Errors[0].Location != tt.location {
					t.Fatalf("want %d %s, got %v", tt.status, tt.location, p)
				}
			}
			if (got.Index > 0) != (got.Accepted > 0) {
				t.Errorf("index %d for %d devices", got.Index, got.Accepted)
			}
			got.Index = 0
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatal(diff)
			}
			if n := g.tables.Status().Devices; n != tt.want.Accepted {
				t.Errorf("%d devices in the tables, %d accepted", n, tt.want.Accepted)
			}
		})
	}
}

func TestImportBatchesAreBoundedInBytes(t *testing.T) {
	g := newRig(t)
	g.west(t)
	var sizes []int
	g.proposer.failWith(func(cmd fsm.Command) error {
		sizes = append(sizes, len(cmd.(*fsm.PutDevices).Changes))
		return nil
	})
	// Lines of 1 KiB: a batch holds 256 of them.
	var b strings.Builder
	for i := range 600 {
		line := fmt.Sprintf(`{"key":"%06d","cluster":"west"}`, i)
		b.WriteString(line[:1] + strings.Repeat(" ", 1024-len(line)) + line[1:] + "\n")
	}
	got, err := g.client(t, "").ImportDevices(t.Context(), strings.NewReader(b.String()), client.WriteOptions{})
	if ok(t, got, err); got.Accepted != 600 || !slices.Equal(sizes, []int{256, 256, 88}) {
		t.Fatalf("%+v, batches of %v", got, sizes)
	}
}

func TestImportWithoutLeader(t *testing.T) {
	for code, status := range map[fsm.Code]int{fsm.CodeNoLeader: 503, fsm.CodeUnknown: 504} {
		g := newRig(t)
		g.west(t)
		batches := 0
		g.proposer.failWith(func(fsm.Command) error {
			if batches++; batches == 3 {
				return fsm.NewError(code, "", "gone")
			}
			return nil
		})
		got, err := g.client(t, "").ImportDevices(t.Context(), strings.NewReader(lines(3500, nil)), client.WriteOptions{})
		wantProblem(t, err, status, string(code), "")
		if got.LastCommittedLine != 2000 || got.Accepted != 2000 || got.Line != 0 || !strings.Contains(err.Error(), "last committed line 2000") {
			t.Errorf("%s: %+v", code, got)
		}
		if p := problemOf(t, err); (p.RetryAfter == time.Second) != (code == fsm.CodeNoLeader) {
			t.Errorf("%s: Retry-After %v", code, p.RetryAfter)
		}
	}
}

func TestImportCutOff(t *testing.T) {
	g := newRig(t)
	g.west(t)
	body, feed := io.Pipe()
	go func() {
		io.WriteString(feed, lines(1500, nil)+`{"key":"half`)
		feed.CloseWithError(errors.New("gave up"))
	}()
	if _, err := g.client(t, "").ImportDevices(t.Context(), body, client.WriteOptions{}); err == nil {
		t.Fatal("a body that was cut off is taken")
	}
	wait(t, func() bool { return strings.Contains(g.log.String(), "code=bad_request") })
	if _, found := g.tables.Device("half"); found || g.tables.Status().Devices != 1000 {
		t.Errorf("%d devices, want those of the whole batch", g.tables.Status().Devices)
	}
}

// wait polls a condition until it holds.
func wait(t *testing.T, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the condition does not come about")
		}
	}
}

func TestExportIsAnImport(t *testing.T) {
	from, to, ctx := newRig(t), newRig(t), t.Context()
	for _, g := range []*rig{from, to} {
		g.west(t)
	}
	c := from.client(t, "")
	var b strings.Builder
	for i := range 2300 {
		fmt.Fprintf(&b, `{"key":"dev/%d %%","cluster":"west","pin":"w%d","pin_strict":%v,"blocked":%v}`+"\n", i, i%2+1, i%3 == 0, i%5 == 0)
	}
	b.WriteString(`{"key":"only blocked","blocked":true}`)
	ok(t, 0, errOf(c.ImportDevices(ctx, strings.NewReader(b.String()), client.WriteOptions{})))
	resp, err := http.Get(from.url + "/v1/devices:export")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	if resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("content type %s", resp.Header.Get("Content-Type"))
	}
	res, err := to.client(t, "").ImportDevices(ctx, resp.Body, client.WriteOptions{})
	if ok(t, res, err); res.Accepted != 2301 {
		t.Fatalf("unexpected %+v", res)
	}
	a, _ := from.tables.Devices("", 5000, fsm.DeviceFilter{})
	z, _ := to.tables.Devices("", 5000, fsm.DeviceFilter{})
	for i := range a {
		a[i].Version, z[i].Version = 0, 0
	}
	if diff := cmp.Diff(a, z); diff != "" {
		t.Fatal(diff)
	}
	n := 0
	for _, err := range c.ExportDevices(ctx, client.DeviceQuery{Prefix: "dev/", Blocked: ptr(true)}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 460 {
		t.Errorf("%d lines, want 460", n)
	}
}
