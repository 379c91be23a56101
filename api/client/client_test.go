package client

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{{}, {URL: "gw:8080"}, {URL: "ftp://gw"}, {URL: "http://u:p@gw"}, {URL: "http://gw?x"}, {URL: "http://gw#x"}, {URL: "http://gw", Token: "a\nb"}} {
		_, err := New(o)
		if err == nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// serve answers every request with f.
func serve(t *testing.T, prefix string, f http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	c, err := New(Options{URL: srv.URL + prefix, Token: "tok", Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestRequestOnTheWire(t *testing.T) {
	var uri, auth, match, query string
	c := serve(t, "/base%2Fx/", func(w http.ResponseWriter, r *http.Request) {
		uri, query, _ = strings.Cut(r.RequestURI, "?")
		auth, match = r.Header.Get("Authorization"), r.Header.Get("If-Match")
		w.Write([]byte(`{"index":3}`))
	})
	res, err := c.PutDevice(t.Context(), "../ü+%2F#?", DevicePut{}, WriteOptions{IfMatch: 7, WaitAll: true, WaitTimeout: time.Second})
	if err != nil || res.Index != 3 {
		t.Fatalf("%+v, %v", res, err)
	}
	if want := "/base%2Fx/v1/devices/%2E%2E%2F%C3%BC%2B%252F%23%3F"; uri != want {
		t.Errorf("path %s, want %s", uri, want)
	}
	if auth != "Bearer tok" || match != `"7"` || query != "wait=all&wait_timeout=1s" {
		t.Errorf("%q %q %q", auth, match, query)
	}
}

func TestAnswersThatAreNotOurs(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusTemporaryRedirect)
		},
		"plain error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) },
		"lying type": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(500)
			w.Write([]byte("{"))
		},
	} {
		c := serve(t, "", answer)
		var p *Problem
		if _, err := c.Status(t.Context()); !errors.As(err, &p) || p.Status < 300 || p.Detail == "" {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.Ready(t.Context()); !errors.As(err, &p) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := serve(t, "", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("not JSON")) })
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("an answer that is not JSON is taken")
	}
	c = serve(t, "", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(DevicePage{NextCursor: "c"}) })
	n := 0
	for _, err := range c.Devices(t.Context(), DeviceQuery{}) {
		if n++; err == nil || n > 1 {
			t.Fatalf("a cursor that does not move goes on")
		}
	}
}

func TestExportThatBreaksOff(t *testing.T) {
	c := serve(t, "", func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("{\"key\":\"a\"}\n"))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	var keys []string
	var last error
	for d, err := range c.ExportDevices(t.Context(), DeviceQuery{}) {
		if last = err; err == nil {
			keys = append(keys, d.Key)
		}
	}
	if len(keys) != 1 || last == nil {
		t.Errorf("keys %v, error %v", keys, last)
	}
}

func TestHashToken(t *testing.T) {
	if got := HashToken("abc"); got != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" { // FIPS 180-4, example of SHA-256
		t.Error(got)
	}
}

func TestProblemText(t *testing.T) {
	p := &Problem{Status: 422, Code: "invalid", Detail: "no", Errors: []FieldError{{"line.key", "bad"}}, Import: &ImportResult{Line: 5, LastCommittedLine: 3}}
	if got := p.Error(); got != "422 invalid: no; line.key: bad; stopped at line 5; last committed line 3" {
		t.Error(got)
	}
}
