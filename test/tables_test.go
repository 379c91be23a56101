package test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"turnout/api/client"
	"turnout/test/harness"
)

// TestSameTablesAfterRestartOfAll stops all three gateways and starts them again.
func TestSameTablesAfterRestartOfAll(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.addSite("west", 2, nil)
	for i := range 50 {
		w.assign(fmt.Sprintf("meter-%02d", i), "west")
	}
	before := w.sameTables()
	for _, g := range w.fleet.Gateways() {
		if err := g.Stop(w.ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.fleet.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	after := w.sameTables()
	if before.Checksum != after.Checksum || before.Devices != after.Devices {
		t.Errorf("before: %s, %d devices; after: %s, %d devices", before.Checksum, before.Devices, after.Checksum, after.Devices)
	}
}

// sameTables waits until all gateways stand at one index, and compares their checksums.
func (w *world) sameTables() client.Status {
	w.t.Helper()
	var first client.Status
	w.eventually("all gateways at one index", func() (bool, string) {
		var all []client.Status
		for _, g := range w.fleet.Gateways() {
			s, err := g.API().Status(w.ctx)
			if err != nil {
				return false, err.Error()
			}
			all = append(all, s)
		}
		first = all[0]
		return !slices.ContainsFunc(all, func(s client.Status) bool { return s.Index != first.Index || s.Checksum != first.Checksum }), fmt.Sprint(all)
	})
	return first
}

// TestDevicesFirst takes the quorum away: known devices keep their node, new ones get theirs, writes are refused with a hint.
func TestDevicesFirst(t *testing.T) {
	w := newWorld(t, 3, nil)
	west := w.addSite("west", 2, nil)
	if _, err := w.operator().PutPolicy(w.ctx, client.PolicyPut{Policy: "weighted"}, client.WriteOptions{WaitAll: true}); err != nil {
		t.Fatal(err)
	}
	w.assign("known", "west")
	w.visit("known")
	home := west.home(t, "known")
	w.waitBound(map[string]string{"known": home})

	gateways := w.fleet.Gateways()
	for _, g := range gateways[:2] {
		if err := g.Stop(w.ctx); err != nil {
			t.Fatal(err)
		}
	}
	last := gateways[2]
	for range 20 {
		w.visit("known")
		w.visit("new")
	}
	if got := west.home(t, "known"); got != home {
		t.Errorf("known device moved from %s to %s without quorum", home, got)
	}
	newHome := west.home(t, "new")
	w.eventually("a write without quorum to be refused as not written", func() (bool, string) {
		blocked := true
		_, err := last.API().PatchDevice(w.ctx, "other", client.DevicePatch{Blocked: &blocked}, client.WriteOptions{})
		var p *client.Problem
		if !errors.As(err, &p) {
			t.Fatalf("write without quorum: %v", err)
		}
		// A leader that has just lost its quorum cannot know whether what it took will be committed; afterwards there is no leader.
		return p.Status == 503 && p.Code == "no_leader" && p.RetryAfter >= time.Second, p.Error()
	})

	if err := w.fleet.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	w.visit("new")
	w.waitBound(map[string]string{"known": home, "new": newHome})
}

// TestUnknownDevices goes through the policies; the verdict is the device's CONNACK and the brokers' records.
func TestUnknownDevices(t *testing.T) {
	w := newWorld(t, 3, nil)
	west, east := w.addSite("west", 2, nil), w.addSite("east", 1, nil)
	for version, code := range map[byte]byte{4: 5, 5: 0x87} {
		_, err := w.connect(harness.DeviceOptions{ClientID: "stranger", Version: version, CleanStart: true})
		var refused *harness.RefusedError
		if !errors.As(err, &refused) || refused.Code != code {
			t.Errorf("refuse policy, version %d: %v, want code 0x%02x", version, err, code)
		}
	}
	if _, err := w.operator().Device(w.ctx, "stranger"); !isNotFound(err) {
		t.Errorf("a refused device wrote a record: %v", err)
	}

	w.policy(client.PolicyPut{Policy: "cluster", Cluster: "east"})
	w.visit("by-policy")
	east.home(t, "by-policy")

	w.policy(client.PolicyPut{Policy: "weighted"})
	for i := range 40 {
		w.visit(fmt.Sprintf("hashed-%02d", i))
	}
	inWest, inEast := 0, 0
	for i := range 40 {
		id := fmt.Sprintf("hashed-%02d", i)
		a, b := len(west.counts(id)), len(east.counts(id))
		if a+b != 1 {
			t.Errorf("%s was seen in %d clusters", id, a+b)
		}
		inWest, inEast = inWest+a, inEast+b
	}
	if inWest == 0 || inEast == 0 {
		t.Errorf("weighted hash put %d devices west and %d east", inWest, inEast)
	}
	// What was placed stays placed, whatever the policy becomes.
	homes := map[string]string{"by-policy": east.home(t, "by-policy")}
	for i := range 40 {
		id := fmt.Sprintf("hashed-%02d", i)
		s := west
		if len(east.counts(id)) > 0 {
			s = east
		}
		homes[id] = s.home(t, id)
	}
	w.waitBound(homes)
	w.policy(client.PolicyPut{Policy: "refuse"})
	w.visit("by-policy")

	// An empty client identifier is routed by policy and recorded nowhere.
	w.policy(client.PolicyPut{Policy: "cluster", Cluster: "west"})
	before, err := w.operator().Status(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	d, err := w.connect(harness.DeviceOptions{Version: 4, CleanStart: true})
	if err != nil {
		t.Fatalf("empty client identifier: %v", err)
	}
	d.Disconnect()
	w.visit("last") // through any gateway; the one that met the empty identifier writes in order
	w.waitBound(map[string]string{"last": west.home(t, "last")})
	after := w.sameTables()
	after.Devices--
	if after.Devices != before.Devices {
		t.Errorf("%d devices before an empty client identifier, %d after", before.Devices, after.Devices)
	}

	// Blocked beats everything.
	blocked := true
	if _, err := w.operator().PatchDevice(w.ctx, "by-policy", client.DevicePatch{Blocked: &blocked}, client.WriteOptions{WaitAll: true}); err != nil {
		t.Fatal(err)
	}
	_, err = w.connect(harness.DeviceOptions{ClientID: "by-policy", Version: 5, CleanStart: true})
	var refused *harness.RefusedError
	if !errors.As(err, &refused) || refused.Code != 0x8a {
		t.Errorf("blocked device: %v, want 0x8a", err)
	}
}

func (w *world) policy(p client.PolicyPut) {
	w.t.Helper()
	r, err := w.operator().PutPolicy(w.ctx, p, client.WriteOptions{WaitAll: true})
	if err != nil || len(r.Lagging) > 0 {
		w.t.Fatalf("set policy: %v, lagging %v", err, r.Lagging)
	}
}

func isNotFound(err error) bool {
	var p *client.Problem
	return errors.As(err, &p) && p.Status == 404
}
