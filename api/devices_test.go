package api_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"turnout/api/client"
	"turnout/fsm"
)

func TestDevices(t *testing.T) {
	g, ctx := newRig(t), t.Context()
	g.west(t)
	c := g.client(t, "")
	w, err := c.PutDevice(ctx, "d1", client.DevicePut{Cluster: "west", Pin: "w1", PinStrict: true}, client.WriteOptions{IfNoneMatch: true})
	ok(t, w, err)
	d, err := c.Device(ctx, "d1")
	want := client.Device{Key: "d1", Cluster: "west", Origin: "assigned", Pin: &client.NodeRef{ID: 1, Name: "w1"}, PinStrict: true, Version: w.Version}
	if diff := cmp.Diff(want, ok(t, d, err)); diff != "" {
		t.Fatal(diff)
	}
	// A patch leaves alone what it does not name; a put takes it away.
	ok(t, 0, errOf(c.PatchDevice(ctx, "d1", client.DevicePatch{Blocked: ptr(true)}, client.WriteOptions{IfMatch: d.Version})))
	if d, err = c.Device(ctx, "d1"); !ok(t, d, err).Blocked || d.Pin.String() != "w1" {
		t.Fatalf("unexpected device %+v", d)
	}
	ok(t, 0, errOf(c.PutDevice(ctx, "d1", client.DevicePut{Cluster: "west"}, client.WriteOptions{})))
	if d, err = c.Device(ctx, "d1"); ok(t, d, err).Blocked || d.Pin != nil || d.PinStrict {
		t.Fatalf("unexpected device %+v", d)
	}
	g.must(t, &fsm.Bind{Bindings: []fsm.Binding{{Key: "d1", Cluster: 1, Node: 2}}})
	if d, err = c.Device(ctx, "d1"); ok(t, d, err).Binding.String() != "w2" {
		t.Fatalf("unexpected device %+v", d)
	}
	g.must(t, &fsm.UpdateNodes{Cluster: "west", Remove: []fsm.NodeName{"w2"}})
	if d, err = c.Device(ctx, "d1"); !ok(t, d, err).Binding.Gone || d.Binding.String() != "2" || d.Binding.Name != "" {
		t.Fatalf("unexpected binding %+v", d.Binding)
	}

	for _, bad := range []struct {
		name     string
		put      client.DevicePut
		location string
	}{
		{"unknown cluster", client.DevicePut{Cluster: "nowhere"}, "body.cluster"},
		{"unknown node", client.DevicePut{Cluster: "west", Pin: "w9"}, "body.pin"},
		{"pin without cluster", client.DevicePut{Pin: "w1"}, "body.pin"},
		{"strict without pin", client.DevicePut{Cluster: "west", PinStrict: true}, "body.pin_strict"},
	} {
		t.Run(bad.name, func(t *testing.T) {
			_, err := c.PutDevice(ctx, "d2", bad.put, client.WriteOptions{})
			wantProblem(t, err, 422, "invalid", bad.location)
		})
	}
	_, err = c.PatchDevice(ctx, "d1", client.DevicePatch{}, client.WriteOptions{})
	wantProblem(t, err, 422, "invalid", "body")
	_, err = c.DeleteDevice(ctx, "d1", client.WriteOptions{IfMatch: 1})
	wantProblem(t, err, 412, "conflict", "")
	_, err = c.PatchDevice(ctx, "d1", client.DevicePatch{Blocked: ptr(true)}, client.WriteOptions{IfMatch: 1})
	wantProblem(t, err, 412, "conflict", "header.If-Match")
	ok(t, 0, errOf(c.DeleteDevice(ctx, "d1", client.WriteOptions{})))
	_, err = c.DeleteDevice(ctx, "d1", client.WriteOptions{})
	wantProblem(t, err, 404, "not_found", "path.key")
	_, err = c.Device(ctx, "d1")
	wantProblem(t, err, 404, "not_found", "path.key")
}

func TestDeviceKeysByteForByte(t *testing.T) {
	g, ctx := newRig(t), t.Context()
	g.west(t)
	c := g.client(t, "")
	keys := []string{
		"a/b", "a%2Fb", "a%252Fb", "..", ".", "../..", "/", "//", "%", "%zz", "a+b", "a b", "a#b", "a?b=c&d", "ü 😀", "A", "a", "nodes", "route",
		"export", "import", ":import", "{key}", "*", "a;b", "\"quoted\"", "\x01\x7f", "\u2028", "\ufffd", strings.Repeat("k", 256), strings.Repeat("ü", 128),
	}
	for i, key := range keys {
		strict := i%2 == 0
		if _, err := c.PutDevice(ctx, key, client.DevicePut{Cluster: "west", Pin: "w1", PinStrict: strict}, client.WriteOptions{IfNoneMatch: true}); err != nil {
			t.Fatalf("put %q: %v", key, err)
		}
	}
	for i, key := range keys {
		if d, found := g.tables.Device(fsm.DeviceKey(key)); !found || d.PinStrict != (i%2 == 0) {
			t.Errorf("the tables do not have %q as it was put", key)
		}
		if d, err := c.Device(ctx, key); err != nil || d.Key != key {
			t.Errorf("get %q: %q, %v", key, d.Key, err)
		}
		if ex, err := c.Explain(ctx, key, client.ExplainQuery{}); err != nil || ex.Key != key || string(g.router.got.Key) != key {
			t.Errorf("explain %q: %q, %v", key, ex.Key, err)
		}
		if _, err := c.SendCommand(ctx, key, client.Command{Payload: ptr("x")}); err != nil || string(g.commander.to.Key) != key {
			t.Errorf("command %q: %q, %v", key, g.commander.to.Key, err)
		}
	}
	var listed []string
	for d, err := range c.Devices(ctx, client.DeviceQuery{Limit: 3}) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, d.Key)
	}
	var exported []string
	for d, err := range c.ExportDevices(ctx, client.DeviceQuery{}) {
		if err != nil {
			t.Fatal(err)
		}
		exported = append(exported, d.Key)
	}
	for _, got := range [][]string{listed, exported} {
		slices.Sort(got)
		want := slices.Sorted(slices.Values(keys))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	for _, key := range keys {
		if _, err := c.DeleteDevice(ctx, key, client.WriteOptions{}); err != nil {
			t.Errorf("delete %q: %v", key, err)
		}
	}
	if n := g.tables.Status().Devices; n != 0 {
		t.Errorf("%d devices are left", n)
	}
	for _, key := range []string{strings.Repeat("k", 257), "\xff", "a\xc3"} {
		_, err := c.Device(ctx, key)
		wantProblem(t, err, 422, "invalid", "path.key")
		_, err = c.PutDevice(ctx, key, client.DevicePut{}, client.WriteOptions{})
		wantProblem(t, err, 422, "invalid", "path.key")
	}
	// However a client spells the path, the same bytes are the same key.
	ok(t, 0, errOf(c.PutDevice(ctx, "ü+b", client.DevicePut{}, client.WriteOptions{})))
	for _, path := range []string{"/v1/devices/%C3%BC%2Bb", "/v1/devices/%c3%bc+b", "/v1/devices/%C3%BC%2bb"} {
		if status, _, body := g.do(t, call{method: "GET", path: path}); status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestListing(t *testing.T) {
	g, ctx := newRig(t), t.Context()
	g.west(t)
	c := g.client(t, "")
	g.must(t, &fsm.PutDevices{Changes: []fsm.DeviceChange{
		{Key: "a1", Cluster: ptr(fsm.ClusterName("west")), Pin: ptr(fsm.NodeName("w1"))},
		{Key: "a2", Cluster: ptr(fsm.ClusterName("west"))},
		{Key: "a3", Blocked: ptr(true)},
		{Key: "b1", Cluster: ptr(fsm.ClusterName("west"))},
	}})
	for _, tt := range []struct {
		q    client.DeviceQuery
		want []string
	}{
		{client.DeviceQuery{}, []string{"a1", "a2", "a3", "b1"}},
		{client.DeviceQuery{Limit: 1}, []string{"a1", "a2", "a3", "b1"}},
		{client.DeviceQuery{Prefix: "a", Limit: 2}, []string{"a1", "a2", "a3"}},
		{client.DeviceQuery{Cluster: "west"}, []string{"a1", "a2", "b1"}},
		{client.DeviceQuery{Cluster: "west", Node: "w1"}, []string{"a1"}},
		{client.DeviceQuery{Blocked: ptr(true)}, []string{"a3"}},
		{client.DeviceQuery{Blocked: ptr(false), Prefix: "a"}, []string{"a1", "a2"}},
	} {
		var got []string
		for d, err := range c.Devices(ctx, tt.q) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, d.Key)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%+v: %s", tt.q, diff)
		}
	}
	for path, location := range map[string]string{
		"?cluster=nowhere": "query.cluster", "?node=w1": "query.node", "?cluster=west&node=w9": "query.node", "?blocked=maybe": "query.blocked",
		"?limit=0": "query.limit", "?limit=1001": "query.limit", "?limit=x": "query.limit", "?cursor=%21": "query.cursor", "?cursor=_w": "query.cursor",
		"?colour=red": "query.colour", "?limit=1&limit=2": "query.limit",
	} {
		status, _, body := g.do(t, call{method: "GET", path: "/v1/devices" + path})
		if status/100 != 4 || !strings.Contains(body, `"location":"`+location+`"`) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	_, h, _ := g.do(t, call{method: "GET", path: "/v1/devices/a1"})
	if h.Get("ETag") != `"7"` || h.Get("Turnout-Index") == "" {
		t.Errorf("unexpected headers %v", h)
	}
}
