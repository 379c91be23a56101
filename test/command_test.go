package test

import (
	"testing"

	"turnout/api/client"
	"turnout/test/harness"
)

// TestCommandsReachDevices sends commands through both kinds of channel, to devices that listen and to devices that do not. The embedded
// broker acknowledges a publication over MQTT in the same way whether anybody is subscribed or not, so the outcome must not claim more.
func TestCommandsReachDevices(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.addSite("west", 2, &client.ChannelSpec{Kind: "emqx"})
	w.addSite("east", 2, &client.ChannelSpec{Kind: "mqtt", Topic: "to/{key}"})
	for _, c := range []struct{ id, cluster, topic, heard, unheard string }{
		{"pump-1", "west", "devices/pump-1/commands", "dispatched", "offline"},
		{"pump-2", "east", "to/pump-2", "accepted", "accepted"},
	} {
		w.assign(c.id, c.cluster)
		if got := w.command(c.id, "too early"); got.Outcome != c.unheard {
			t.Errorf("%s: command to a device that never connected: %+v, want %s", c.id, got, c.unheard)
		}
		d, err := w.connect(harness.DeviceOptions{ClientID: c.id, Version: 5, CleanStart: true, Subscribe: []string{c.topic}})
		if err != nil {
			t.Fatal(err)
		}
		if got := w.command(c.id, "open"); got.Outcome != c.heard || got.Cluster != c.cluster {
			t.Errorf("%s: %+v, want %s by %s", c.id, got, c.heard, c.cluster)
		}
		m, err := d.Await(w.ctx, func(m harness.Message) bool { return string(m.Payload) == "open" })
		if err != nil {
			t.Fatalf("%s: the command did not arrive: %v", c.id, err)
		}
		if m.Topic != c.topic {
			t.Errorf("%s: topic %q", c.id, m.Topic)
		}
	}
	text := "x"
	if _, err := w.operator().SendCommand(w.ctx, "nobody", client.Command{Payload: &text}); !isNotFound(err) {
		t.Errorf("command to an unknown device: %v, want 404", err)
	}
}

func (w *world) command(id, payload string) client.CommandResult {
	w.t.Helper()
	r, err := w.operator().SendCommand(w.ctx, id, client.Command{Payload: &payload})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}
