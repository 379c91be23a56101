package upstream

import (
	"strings"
	"testing"

	"turnout/fsm"
)

func TestNodeAddress(t *testing.T) {
	spec := fsm.DefaultSpec()
	spec.Port = 2883
	spec.Addresses = map[fsm.NodeName]string{
		"emqx@10.20.7.31": "edge-1.example.com:8884",
		"odd name":        "10.0.0.9:1883",
	}
	tests := []struct {
		name, host, address string
	}{
		{"emqx@10.20.7.31", "m", "edge-1.example.com:8884"}, // the operator's table first
		{"odd name", "m", "10.0.0.9:1883"},
		{"emqx@10.20.7.32", "m", "10.20.7.32:2883"},
		{"emqx@emqx-0.emqx-headless.iot.svc.cluster.local", "m", "emqx-0.emqx-headless.iot.svc.cluster.local:2883"},
		{"emqx@10-20-7-31.iot.pod.cluster.local", "m", "10-20-7-31.iot.pod.cluster.local:2883"},
		{"3f9a1c77d0b2@172.17.0.4", "m", "172.17.0.4:2883"},
		{"rabbit@host1", "m", "host1:2883"},
		{"rabbit@my_host", "m", "my_host:2883"},
		{"emqx@fd00:20::7", "m", "[fd00:20::7]:2883"}, // no splitting at ':'
		{"emqx@127.0.0.1", "mgmt.example.com", "mgmt.example.com:2883"},
		{"emqx@127.0.0.1", "fd00::5", "[fd00::5]:2883"},
		{"emqx@localhost", "mgmt", "mgmt:2883"},
		{"emqx@::1", "mgmt", "mgmt:2883"},
		{"emqx@127.0.0.1", "127.0.0.1", "127.0.0.1:2883"},
		{"emqx", "m", ""},
		{"emqx@", "m", ""},
		{"@10.0.0.1", "m", ""},
		{"emqx@10.0.0.1@10.0.0.2", "m", ""},
		{"emqx@10.0.0.1:1883", "m", ""},
		{"emqx@[fd00::7]", "m", ""},
		{"emqx@fe80::1%eth0", "m", ""},
		{"emqx@169.254.169.254", "m", ""},
		{"emqx@0.0.0.0", "m", ""},
		{"emqx@a b", "m", ""},
		{"emqx@a/b", "m", ""},
		{"emqx@a..b", "m", ""},
		{"emqx@-" + strings.Repeat("a", 63), "m", ""},
		{"emqx@a\x00b", "m", ""},
		{"emqx@" + strings.Repeat("a.", 130) + "a", "m", ""},
		{"emqx@\xff", "m", ""},
	}
	for _, tt := range tests {
		address, problem := nodeAddress(spec, tt.host, fsm.NodeName(tt.name))
		if address != tt.address || (problem == "") != (tt.address != "") {
			t.Errorf("%q from %s: got %q (%s), want %q", tt.name, tt.host, address, problem, tt.address)
		}
		if address == "" {
			continue
		}
		// Whatever comes out, the tables take.
		u := fsm.UpdateNodes{Cluster: "c", Upsert: []fsm.NodeChange{{Name: fsm.NodeName(tt.name), Address: address, State: fsm.NodeUp}}}
		if err := u.Validate(); err != nil {
			t.Errorf("%q: %v", tt.name, err)
		}
	}
}
