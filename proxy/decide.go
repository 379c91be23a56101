package proxy

import (
	"math"

	"turnout/fsm"
	"turnout/proxy/mqtt"
)

// MaxCandidates bounds how many nodes a decision lists, and with it Config.MaxAttempts.
const MaxCandidates = 8

// Refused says why a decision names no node.
type Refused uint8

// The reasons to refuse; zero means that the device is routed.
const (
	RefusedNot       Refused = iota
	RefusedBlocked           // by the operator
	RefusedUnknown           // no record, and the policy refuses unknown devices
	RefusedNoCluster         // the policy or the record leads to no cluster
	RefusedNoNode            // the cluster has no node with an address
	RefusedPin               // strictly pinned to a node that is gone or has no address
)

// String gives a metric label.
func (r Refused) String() string {
	switch r {
	case RefusedNot:
		return "routed"
	case RefusedBlocked:
		return "blocked"
	case RefusedUnknown:
		return "unknown_device"
	case RefusedNoCluster:
		return "no_cluster"
	case RefusedNoNode:
		return "no_node"
	}
	return "pin_gone"
}

// refusal is what the device is told.
func (r Refused) refusal() mqtt.Refusal {
	switch r {
	case RefusedBlocked:
		return mqtt.RefuseBanned
	case RefusedUnknown:
		return mqtt.RefuseNotAuthorized
	}
	return mqtt.RefuseServerUnavailable
}

// By says what chose a cluster or a node.
type By uint8

// What chooses.
const (
	ByNone       By = iota
	ByAssignment    // cluster: the operator's assignment
	ByPlacement     // cluster: the policy's earlier choice, recorded
	ByPolicy        // cluster: the policy for unknown devices
	ByPin           // node: the operator's pin
	ByBinding       // node: the recorded binding
	ByRing          // node: the ring
)

// String names it as the API does.
func (b By) String() string {
	switch b {
	case ByAssignment:
		return "assignment"
	case ByPlacement:
		return "placement"
	case ByPolicy:
		return "policy"
	case ByPin:
		return "pin"
	case ByBinding:
		return "binding"
	case ByRing:
		return "ring"
	}
	return "none"
}

// lookup is what is known of a device when the decision is made.
type lookup struct {
	hash   uint64 // of the key, or chosen at random for the connection when the key is empty
	keyed  bool   // the key is not empty
	device fsm.Device
	found  bool
}

// Decision says where a CONNECT goes. Its pointers lead into the immutable topology it was made from.
type Decision struct {
	Refused   Refused
	Cluster   *fsm.Cluster // nil when none was chosen
	ClusterBy By
	NodeBy    By // what chose the home; ByRing: the device has none
	// Record is whether a success at the device's home is to be written as its binding: the device has a key and neither a
	// pin nor a binding to a member that is not draining. See records.
	Record bool

	owner *fsm.Node // first on the ring that has an address: the home of a device that has none recorded

	candidates [MaxCandidates]*fsm.Node
	count      int
}

// Candidates are the nodes to try, in order.
func (d *Decision) Candidates() []*fsm.Node { return d.candidates[:d.count] }

// records reports whether a success at this node is to be written. Falling back from a node that is down but still a member writes
// nothing: the ring gives the device its home again when that is back. A draining node gets no new bindings.
func (d *Decision) records(n *fsm.Node) bool { return d.Record && n == d.owner && !n.Draining }

// decide routes one CONNECT: blocked, recorded cluster, policy; then pin, binding, ring. It reads nothing but its arguments and
// allocates nothing. Health only orders the candidates, of which there are at most limit.
func decide(v *view, in lookup, h *health, limit int) (d Decision) {
	dev := &in.device
	if in.found && dev.Blocked {
		d.Refused = RefusedBlocked
		return d
	}
	var cv *clusterView
	if in.found && dev.Cluster != 0 {
		d.ClusterBy = ByPlacement
		if dev.Origin == fsm.OriginAssigned {
			d.ClusterBy = ByAssignment
		}
		cv = v.clusters[dev.Cluster]
	} else {
		d.ClusterBy = ByPolicy
		if cv, d.Refused = v.unknown(in.hash); d.Refused != RefusedNot {
			return d
		}
	}
	if cv == nil {
		d.Refused = RefusedNoCluster
		return d
	}
	d.Cluster = cv.cluster
	pin, binding := homes(cv.cluster, dev)
	if dev.PinStrict && dev.Pin != 0 {
		d.NodeBy = ByPin
		if pin == nil || pin.Address == "" {
			d.Refused = RefusedPin
			return d
		}
		d.candidates[0], d.count = pin, 1
		return d
	}
	switch {
	case pin != nil:
		d.NodeBy = ByPin
	case binding != nil:
		d.NodeBy = ByBinding
	default:
		d.NodeBy = ByRing
		d.Record = in.keyed
	}
	d.order(cv, pin, binding, in.hash, h, max(1, min(limit, MaxCandidates)))
	if d.count == 0 {
		d.Refused = RefusedNoNode
	}
	return d
}

// homes are the nodes that the record names, nil when there is none or it has left the cluster. A pin holds on a draining node,
// because it is the operator's own word; a binding does not.
func homes(c *fsm.Cluster, dev *fsm.Device) (pin, binding *fsm.Node) {
	pin = member(c, dev.Pin)
	if binding = member(c, dev.Binding); binding != nil && binding.Draining {
		binding = nil
	}
	return pin, binding
}

// order fills the candidates: home first, then the ring. Behind them come nodes that are in their cool-down here, then those that
// discovery does not see running (but a home is always worth a try, it may be back already), and at last those that are
// draining: better than to refuse the device.
func (d *Decision) order(cv *clusterView, pin, binding *fsm.Node, hash uint64, h *health, limit int) {
	var later, last [MaxCandidates]*fsm.Node
	var laters, lasts int
	add := func(n *fsm.Node, home bool) {
		switch {
		case n == nil || n.Address == "":
		case h.cooling(n.ID) || !home && n.State != fsm.NodeUp:
			if laters < limit {
				later[laters] = n
				laters++
			}
		case d.count < limit:
			d.candidates[d.count] = n
			d.count++
		}
	}
	add(pin, true)
	if binding != pin {
		add(binding, true)
	}
	if cv.ring != nil {
		cv.ring.walk(hash, func(i int) bool {
			n := cv.nodes[i]
			if d.owner == nil && n != nil && n.Address != "" {
				d.owner = n
			}
			if n != nil && n != pin && n != binding {
				add(n, false)
			}
			return d.count < limit
		})
	}
	for i := 0; i < len(cv.cluster.Nodes) && d.count+laters+lasts < limit; i++ {
		n := &cv.cluster.Nodes[i]
		if n.Address != "" && n != pin && n != binding && cv.offRing(n.ID) {
			last[lasts] = n
			lasts++
		}
	}
	for _, n := range later[:min(laters, limit-d.count)] {
		d.candidates[d.count] = n
		d.count++
	}
	for _, n := range last[:min(lasts, limit-d.count)] {
		d.candidates[d.count] = n
		d.count++
	}
}

// offRing reports whether a member has no place on the ring: draining, or newer than a ring that could not be built.
func (cv *clusterView) offRing(id fsm.NodeID) bool {
	if cv.ring == nil {
		return true
	}
	for _, m := range cv.ring.members {
		if m == id {
			return false
		}
	}
	return true
}

// unknown applies the policy for devices without a recorded cluster.
func (v *view) unknown(hash uint64) (*clusterView, Refused) {
	switch v.topology.Settings.Unknown.Kind {
	case fsm.PolicyCluster:
		if v.policy == nil {
			return nil, RefusedNoCluster
		}
		return v.policy, RefusedNot
	case fsm.PolicyWeighted:
		if cv := v.rendezvous(hash); cv != nil {
			return cv, RefusedNot
		}
		return nil, RefusedNoCluster
	}
	return nil, RefusedUnknown
}

// rendezvous chooses a cluster by weight (highest random weight, Thaler and Ravishankar 1998, with the weights of Schindelhauer and Schomaker
// 2005): a cluster that comes or goes moves only its own share. It is about unknown devices only; the first choice is recorded.
func (v *view) rendezvous(hash uint64) (best *clusterView) {
	var least float64
	for _, cv := range v.weighted {
		x := mix(hash ^ mix(uint64(cv.cluster.ID)))
		u := (float64(x>>11) + 0.5) / (1 << 53) // in (0,1)
		if score := -math.Log(u) / float64(cv.cluster.Spec.Weight); best == nil || score < least {
			best, least = cv, score
		}
	}
	return best
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood 2014); it keeps the choice of cluster apart from that of partition, which uses the
// same hash.
func mix(x uint64) uint64 {
	x += 0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}
