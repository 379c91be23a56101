package upstream

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"turnout/fsm"
)

func TestPublishEMQXRequest(t *testing.T) {
	t.Setenv("TURNOUT_TEST_CHANNEL", "key:s3cret")
	var got map[string]any
	var auth, method, path, ctype string
	url := fake(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = nil
		_ = json.Unmarshal(b, &got)
		key, secret, _ := r.BasicAuth()
		auth, method, path, ctype = key+":"+secret, r.Method, r.URL.Path, r.Header.Get("Content-Type")
		reply(200, `{"id":"1"}`)(w, r)
	})
	c, _ := newCommander(t, newFakeLog(), newTestMetrics())
	x := target(fsm.ChannelEMQX, url)
	x.Cluster.Spec.Channel.Credential = "env:TURNOUT_TEST_CHANNEL"
	x.Cluster.Spec.Channel.ExpirySeconds = 60
	r := c.Send(t.Context(), x, Command{ID: "c-91", Payload: []byte{0, 1, 0xff}})
	if r.Outcome != Dispatched {
		t.Fatalf("got %+v", r)
	}
	want := map[string]any{"topic": "devices/meter-1/commands", "payload": "AAH/", "payload_encoding": "base64", "qos": 1.0, "retain": false,
		"properties": map[string]any{"message_expiry_interval": 60.0, "correlation_data": "c-91", "user_properties": map[string]any{"command_id": "c-91"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if auth != "key:s3cret" || method != "POST" || path != "/api/v5/publish" || ctype != "application/json" {
		t.Error(auth, method, path, ctype)
	}

	// An empty channel URL means the management URLs with their credential; a URL of its own never gets that credential.
	y := target(fsm.ChannelEMQX, "")
	y.Cluster.Spec.ManagementURLs, y.Cluster.Spec.Credential = []string{"http://127.0.0.1:1", url + "/api/v5"}, "env:TURNOUT_TEST_CHANNEL"
	if r := c.Send(t.Context(), y, Command{QoS: ptr[uint8](0)}); r.Outcome != Dispatched || auth != "key:s3cret" || got["qos"] != 0.0 || got["payload"] != "" {
		t.Errorf("got %+v, %s, %v", r, auth, got)
	}
	y.Cluster.Spec.Channel.URL = url
	if r := c.Send(t.Context(), y, Command{}); r.Outcome != Dispatched || auth != ":" {
		t.Errorf("got %+v, %s", r, auth)
	}
}

func TestPublishEMQXOutcomes(t *testing.T) {
	const clientID = "a/b c"
	gone := httptest.NewServer(nil)
	gone.Close()
	hang := make(chan struct{})
	defer close(hang)
	// publish answers POST, presence answers the question after the client.
	both := func(publish, presence http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPost:
				publish(w, r)
			case r.URL.EscapedPath() == "/api/v5/clients/a%2Fb%20c":
				presence(w, r)
			default:
				w.WriteHeader(http.StatusTeapot)
			}
		}
	}
	none := reply(202, `{"reason_code":16,"message":"no_matching_subscribers"}`)
	drop := func(w http.ResponseWriter, _ *http.Request) {
		conn, _, _ := w.(http.Hijacker).Hijack()
		_ = conn.Close()
	}
	tests := []struct {
		name   string
		h      http.HandlerFunc
		parts  Parts
		want   Outcome
		detail string
	}{
		{"dispatched", reply(200, `{"id":"000618A2C4D1E3F5F443000012AB0001"}`), Parts{}, Dispatched, ""},
		{"5.0.0 to 5.0.8", reply(200, `{"id":"0006","qos":1,"topic":"t","payload":"p","retain":false,"from":"http_api"}`), Parts{}, Accepted, "version"},
		{"200 of something else", reply(200, `<html>`), Parts{}, Unknown, ""},
		{"200 without an id", reply(200, `{}`), Parts{}, Unknown, ""},
		{"204", reply(204, ``), Parts{}, Unknown, ""},
		{"nobody subscribed", none, Parts{}, NoSubscriber, ""},
		{"nobody subscribed, client not there", both(none, reply(404, `{"code":"CLIENTID_NOT_FOUND","message":"Client ID not found"}`)), Parts{ClientID: clientID}, Offline, ""},
		{"nobody subscribed, client not there, 5.0.15", both(none, reply(404, `{"code":"RESOURCE_NOT_FOUND","reason":"Client id not found"}`)), Parts{ClientID: clientID}, Offline, ""},
		{"nobody subscribed, client disconnected", both(none, reply(200, `{"clientid":"a/b c","connected":false}`)), Parts{ClientID: clientID}, Offline, ""},
		{"nobody subscribed, client connected", both(none, reply(200, `{"clientid":"a/b c","connected":true}`)), Parts{ClientID: clientID}, NoSubscriber, ""},
		{"nobody subscribed, path not there", both(none, reply(404, `{"code":"NOT_FOUND"}`)), Parts{ClientID: clientID}, NoSubscriber, ""},
		{"nobody subscribed, HTML", both(none, reply(404, `<html>`)), Parts{ClientID: clientID}, NoSubscriber, ""},
		{"nobody subscribed, may not ask", both(none, reply(403, `{"code":"UNAUTHORIZED_ROLE"}`)), Parts{ClientID: clientID}, NoSubscriber, ""},
		{"nobody subscribed, no answer", both(none, drop), Parts{ClientID: clientID}, NoSubscriber, ""},
		{"topic refused", reply(400, `{"reason_code":144,"message":"s3cret-text"}`), Parts{}, Rejected, "topic"},
		{"too large", reply(400, `{"reason_code":151,"message":"s3cret-text"}`), Parts{}, Rejected, "large"},
		{"bad base64", reply(400, `{"reason_code":131,"message":"s3cret-text"}`), Parts{}, Rejected, ""},
		{"schema", reply(400, `{"code":"BAD_REQUEST","message":"s3cret-text"}`), Parts{}, Rejected, "malformed"},
		{"400 without JSON", reply(400, `s3cret-text`), Parts{}, Rejected, ""},
		{"wrong key", reply(401, `{"code":"BAD_API_KEY_OR_SECRET","message":"s3cret-text"}`), Parts{}, Rejected, "channel credentials refused"},
		{"weak role", reply(403, `{"code":"UNAUTHORIZED_ROLE","message":"s3cret-text"}`), Parts{}, Rejected, "channel credentials refused"},
		{"no such path", reply(404, `<html>`), Parts{}, Rejected, "URL"},
		{"no such method", reply(405, ``), Parts{}, Rejected, "URL"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, Parts{}, Rejected, "redirect"},
		{"not dispatched", reply(503, `{"reason_code":131,"message":"failed_to_dispatch"}`), Parts{}, Unknown, ""},
		{"crash", reply(500, `{"code":"INTERNAL_ERROR","message":"s3cret-text"}`), Parts{}, Unknown, ""},
		{"closed without an answer", drop, Parts{}, Unknown, ""},
		{"oversize", reply(200, strings.Repeat("x", maxBodyBytes+1)), Parts{}, Unknown, ""},
	}
	c, _ := newCommander(t, newFakeLog(), newTestMetrics())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, second := newPublishAPI(t, tt.h), newPublishAPI(t, reply(200, `{"id":"1"}`))
			x := target(fsm.ChannelEMQX, "")
			x.Parts = tt.parts
			// A first URL that nobody answers at is passed over; once a server was reached, no other is tried.
			x.Cluster.Spec.ManagementURLs = []string{gone.URL, p.url, second.url}
			r := c.Send(t.Context(), x, Command{ID: tt.name, Payload: []byte("p")})
			if r.Outcome != tt.want || !strings.Contains(r.Detail, tt.detail) || r.Detail == "" || strings.Contains(r.Detail, "s3cret") {
				t.Errorf("got %+v, want %s", r, tt.want)
			}
			if second.calls.Load() != 0 {
				t.Error("another URL was tried after the first answer")
			}
		})
	}
	never := []struct {
		name, url, ref, detail string
	}{
		{"nobody listens", gone.URL, "", "channel unreachable"},
		{"metadata service", "http://169.254.169.254", "", "upstream.allow"},
		{"no credential", gone.URL, "env:TURNOUT_TEST_NONE", "env:TURNOUT_TEST_NONE"},
	}
	for _, tt := range never {
		x := target(fsm.ChannelEMQX, tt.url)
		x.Cluster.Spec.Channel.Credential = tt.ref
		if r := c.Send(t.Context(), x, Command{}); r.Outcome != Rejected || !strings.Contains(r.Detail, tt.detail) || strings.Contains(r.Detail, "127.0.0.1") {
			t.Errorf("%s: got %+v", tt.name, r)
		}
	}
	entered := make(chan struct{})
	hanging := fake(t, func(http.ResponseWriter, *http.Request) { close(entered); <-hang })
	t.Run("ends while the broker hangs", func(t *testing.T) {
		x := target(fsm.ChannelEMQX, hanging)
		done := make(chan Result, 1)
		go func() { done <- c.Send(t.Context(), x, Command{ID: "hang"}) }()
		<-entered
		c.Close()
		if r := <-done; r.Outcome != Unknown {
			t.Errorf("got %+v", r)
		}
	})
}
