package proxy

import (
	"fmt"
	"math/rand/v2"

	"turnout/fsm"
	"turnout/proxy/mqtt"
)

// ExplainRequest asks where a device would go now: by its key, or by what its CONNECT would carry.
type ExplainRequest struct {
	Key     fsm.DeviceKey
	Connect *SyntheticConnect // wins over Key
}

// SyntheticConnect is the part of a CONNECT that routing looks at. A nil field is absent from the packet.
type SyntheticConnect struct {
	ClientID string
	Username *string
	Password *string
}

// Explanation is a decision with its reasons. It never holds a password.
type Explanation struct {
	Index     uint64          // Raft index of the topology it rests on
	Key       fsm.DeviceKey   // empty: the device would be routed and not recorded
	Refused   string          // empty: routed; otherwise the result that a real CONNECT would be counted as
	Cluster   fsm.ClusterName // empty when none was chosen
	ClusterBy string          // assignment, placement, policy or none
	NodeBy    string          // pin, binding, ring or none
	// Candidates are the nodes in the order in which this gateway would try them now.
	Candidates []ExplainedNode
	// Records is whether a success would be written, as a binding to the node that accepts the device.
	Records bool
	// Steps tell the same in sentences, in the order of the decision.
	Steps []string
}

// ExplainedNode is one candidate.
type ExplainedNode struct {
	ID       fsm.NodeID
	Name     fsm.NodeName
	Address  string
	State    fsm.NodeState
	Draining bool
	Cooling  bool // did not answer this gateway lately
}

// Explain decides as for a real CONNECT and says why. It changes nothing and dials nobody.
func (g *Gateway) Explain(req ExplainRequest) Explanation {
	v := g.views.get()
	e := Explanation{Index: v.topology.Index, Key: req.Key, ClusterBy: ByNone.String(), NodeBy: ByNone.String()}
	if c := req.Connect; c != nil {
		if v.identity == nil {
			e.refuse(string(resultNotReady), "The tables hold no identity template yet: every device is told \"server unavailable\".")
			return e
		}
		key, err := v.identity.Key(nil, c.packet(), v.topology.Settings.Secret)
		if err != nil {
			e.refuse(string(resultKeyTooLong), "The identity template gives a key of more than %d bytes: refused, \"client identifier not valid\".", fsm.MaxKeyBytes)
			return e
		}
		e.Key = fsm.DeviceKey(key)
		e.step("The identity template %q gives the device key %q.", v.identity.String(), shown(e.Key))
	}
	in := lookup{keyed: e.Key != "", hash: rand.Uint64()}
	if in.keyed {
		in.hash = keyHash([]byte(e.Key))
	} else {
		e.step("The key is empty: the connection gets a hash by chance, and nothing is recorded.")
	}
	in.device, in.found = g.tables.Device(e.Key)
	if in.keyed && !in.found && !g.caughtUp() {
		e.refuse(string(resultNotReady), "There is no record of this device, but the tables have not caught up since the start: \"server unavailable\".")
		return e
	}
	d := decide(v, in, g.health, g.cfg.MaxAttempts)
	e.tellCluster(v, &in, &d)
	if d.Cluster != nil {
		e.Cluster, e.ClusterBy, e.NodeBy, e.Records = d.Cluster.Name, d.ClusterBy.String(), d.NodeBy.String(), d.Record && d.Refused == RefusedNot
		e.tellHome(&in, &d)
	}
	if d.Refused != RefusedNot {
		e.tellRefusal(d.Refused)
		return e
	}
	e.tellCandidates(g.health, &in, &d)
	return e
}

func (c *SyntheticConnect) packet() *mqtt.Connect {
	p := &mqtt.Connect{Version: mqtt.V5, ClientID: []byte(c.ClientID)}
	if c.Username != nil {
		p.HasUsername, p.Username = true, []byte(*c.Username)
	}
	if c.Password != nil {
		p.HasPassword, p.Password = true, []byte(*c.Password)
	}
	return p
}

// shown cuts device-supplied text for a sentence.
func shown(k fsm.DeviceKey) string {
	const most = 64
	if len(k) > most {
		return string(k[:most]) + "..."
	}
	return string(k)
}

func (e *Explanation) step(format string, args ...any) {
	e.Steps = append(e.Steps, fmt.Sprintf(format, args...))
}

func (e *Explanation) refuse(reason, format string, args ...any) {
	e.Refused = reason
	e.step(format, args...)
}

func (e *Explanation) tellCluster(v *view, in *lookup, d *Decision) {
	switch {
	case !in.keyed:
	case !in.found:
		e.step("There is no record of this device.")
	case in.device.Blocked:
		e.step("The record of this device says that it is blocked.")
	case in.device.Cluster == 0:
		e.step("The record of this device names no cluster.")
	}
	name := ""
	if d.Cluster != nil {
		name = string(d.Cluster.Name)
	}
	switch d.ClusterBy {
	case ByAssignment:
		e.step("An operator assigned it to the cluster %q.", name)
	case ByPlacement:
		e.step("It was placed in the cluster %q when it first connected.", name)
	case ByPolicy:
		p := v.topology.Settings.Unknown
		switch p.Kind {
		case fsm.PolicyCluster:
			e.step("The policy for unknown devices sends all of them to the cluster %q.", string(p.Cluster))
		case fsm.PolicyWeighted:
			e.step("The policy for unknown devices spreads them over %d clusters by weight; the hash chooses %q.", len(v.weighted), name)
		default:
			e.step("The policy for unknown devices refuses them.")
		}
	}
}

func (e *Explanation) tellHome(in *lookup, d *Decision) {
	for _, h := range []struct {
		what string
		id   fsm.NodeID
	}{{"pin", in.device.Pin}, {"binding", in.device.Binding}} {
		if h.id == 0 {
			continue
		}
		switch n := member(d.Cluster, h.id); {
		case n == nil:
			e.step("Its %s names a node that has left the cluster, and counts no more.", h.what)
		case n.Draining && h.what == "binding":
			e.step("Its binding names the node %q, which is draining: the binding will be replaced.", string(n.Name))
		case n.Draining:
			e.step("Its pin names the node %q and holds although that is draining.", string(n.Name))
		default:
			e.step("Its %s names the node %q.", h.what, string(n.Name))
		}
	}
	if d.NodeBy == ByRing {
		e.step("No node is its home: the ring of the cluster gives the order.")
	}
}

func (e *Explanation) tellRefusal(r Refused) {
	switch r {
	case RefusedBlocked:
		e.refuse(r.String(), "Refused: \"banned\" in MQTT 5.0, \"not authorized\" in 3.x.")
	case RefusedUnknown:
		e.refuse(r.String(), "Refused: \"not authorized\".")
	case RefusedNoCluster:
		e.refuse(r.String(), "There is no such cluster, or none that takes new devices: \"server unavailable\".")
	case RefusedPin:
		e.refuse(r.String(), "The pin is strict and its node can't be reached: \"server unavailable\".")
	default:
		e.refuse(r.String(), "The cluster has no node with an address: \"server unavailable\".")
	}
}

func (e *Explanation) tellCandidates(h *health, in *lookup, d *Decision) {
	for i, n := range d.Candidates() {
		x := ExplainedNode{ID: n.ID, Name: n.Name, Address: n.Address, State: n.State, Draining: n.Draining, Cooling: h.cooling(n.ID)}
		e.Candidates = append(e.Candidates, x)
		note := ""
		switch {
		case x.Cooling:
			note = "; it did not answer this gateway lately"
		case x.Draining:
			note = "; it is draining"
		case x.State != fsm.NodeUp:
			note = "; discovery sees it " + x.State.String()
		}
		e.step("Try %d: the node %q at %s%s.", i+1, string(n.Name), n.Address, note)
	}
	switch {
	case in.device.PinStrict && d.NodeBy == ByPin:
		e.step("The pin is strict: no other node is tried.")
	case d.Record:
		e.step("The first node of the ring is recorded as its binding once it accepts the device; a node behind it is not.")
	case in.keyed:
		e.step("Nothing is recorded: its home stays what it is, wherever it is accepted.")
	}
}
