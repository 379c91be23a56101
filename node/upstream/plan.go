package upstream

import (
	"fmt"
	"strconv"

	"turnout/fsm"
)

// ProbeResult is what an MQTT probe of a missing node found.
type ProbeResult uint8

// The results of a probe.
const (
	ProbeNone     ProbeResult = iota // not probed
	ProbeAnswered                    // a well-formed CONNACK came, a refusing one included
	ProbeSilent                      // no connection, or no CONNACK in time
	ProbeRefused                     // the guard does not let this gateway connect there: nothing is known
)

// AlarmKind names a condition that needs an operator. The set is closed: it labels a metric.
type AlarmKind string

// The kinds of alarms.
const (
	AlarmRemovalHeld  AlarmKind = "removal_held"   // too many nodes would go at once
	AlarmProbeRefused AlarmKind = "probe_refused"  // a node is missing, and the guard forbids looking whether it answers
	AlarmUnlisted     AlarmKind = "unlisted"       // a node is missing for long, but answers MQTT
	AlarmInvalidEntry AlarmKind = "invalid_entry"  // the cluster lists an entry that cannot be used
	AlarmTooManyNodes AlarmKind = "too_many_nodes" // the cluster has more members than the tables take
	AlarmUnauthorized AlarmKind = "unauthorized"   // the management credential is refused
	AlarmCredential   AlarmKind = "no_credential"  // the credential reference leads to nothing on the leader
	AlarmAddress      AlarmKind = "refused_address"
)

func alarmKinds() []AlarmKind {
	return []AlarmKind{AlarmRemovalHeld, AlarmProbeRefused, AlarmUnlisted, AlarmInvalidEntry, AlarmTooManyNodes,
		AlarmUnauthorized, AlarmCredential, AlarmAddress}
}

// Alarm is a condition that needs an operator. It stands as long as it holds.
type Alarm struct {
	Kind   AlarmKind
	Node   fsm.NodeName // empty when it is about the cluster
	Detail string
}

// Reason says why a plan does something to a node.
type Reason struct {
	Node fsm.NodeName
	Text string
}

// PlanInput is everything a plan is made from.
type PlanInput struct {
	Cluster *fsm.Cluster // as stored
	Answer  []Member     // of a successful poll; not empty
	// Misses counts, for each stored node that the answer lacks, the successful polls in a row that lacked it, this one included.
	Misses map[fsm.NodeName]uint32
	// Probes holds the results for the nodes that have been missing for RemoveAfter polls.
	Probes map[fsm.NodeName]ProbeResult
	// Removed counts the nodes that discovery removed during the last RemoveAfter polls.
	Removed int
}

// PlanResult is what should happen.
type PlanResult struct {
	Change  *fsm.UpdateNodes // nil when the tables are right already
	Reasons []Reason         // one for each node in Change
	Held    []fsm.NodeName   // gone, but too many at once: they stay until an operator removes them
	Alarms  []Alarm
}

// Quota is how many nodes discovery may remove from a cluster of n members within RemoveAfter polls without an operator: one, or a
// quarter of them, whichever is more.
func Quota(n int) int { return max(1, n/4) }

// Plan compares the stored members of a cluster with a poll's answer. It reads nothing but its input and changes nothing.
//
// A member that the answer lacks becomes suspect. It is removed once it was missing for RemoveAfter polls in a row and does not
// answer an MQTT probe, unless more than [Quota] nodes would then be gone within RemoveAfter polls: in that case none is
// removed, because a view that has lost many nodes at once is more likely wrong than the nodes are gone. For the static driver
// the answer is the operator's own list, so whatever is not in it goes at once.
func Plan(in PlanInput) PlanResult {
	p := planner{in: in, change: &fsm.UpdateNodes{Cluster: in.Cluster.Name}}
	listed := p.listed()
	p.missing(listed)
	if len(p.change.Upsert)+len(p.change.Remove) > 0 {
		version := in.Cluster.NodesVersion
		p.change.IfNodesVersion = &version
		p.out.Change = p.change
	}
	return p.out
}

type planner struct {
	in     PlanInput
	out    PlanResult
	change *fsm.UpdateNodes
}

func (p *planner) alarm(kind AlarmKind, node fsm.NodeName, format string, args ...any) {
	p.out.Alarms = append(p.out.Alarms, Alarm{Kind: kind, Node: node, Detail: fmt.Sprintf(format, args...)})
}

func (p *planner) upsert(name fsm.NodeName, address string, state fsm.NodeState, why string) {
	p.change.Upsert = append(p.change.Upsert, fsm.NodeChange{Name: name, Address: address, State: state})
	p.out.Reasons = append(p.out.Reasons, Reason{Node: name, Text: why})
}

// listed plans for the members of the answer and returns their names.
func (p *planner) listed() map[fsm.NodeName]bool {
	listed := make(map[fsm.NodeName]bool, len(p.in.Answer))
	room, left := fsm.MaxClusterNodes-len(p.in.Cluster.Nodes), 0
	var invalid []Member
	for _, m := range p.in.Answer {
		listed[m.Name] = true
		if m.Problem != "" {
			invalid = append(invalid, m)
			continue
		}
		have, stored := p.in.Cluster.NodeByName(m.Name)
		switch {
		case !stored && room == 0:
			left++
		case !stored:
			room--
			p.upsert(m.Name, m.Address, m.State, "new member, "+m.State.String())
		case have.State != m.State:
			p.upsert(m.Name, m.Address, m.State, have.State.String()+" before, now "+m.State.String())
		case have.Address != m.Address:
			p.upsert(m.Name, m.Address, m.State, "address changed")
		}
	}
	if len(invalid) > 0 {
		p.alarm(AlarmInvalidEntry, "", "%d listed entries cannot be used, the first is %s: %s", len(invalid), invalid[0].Problem, quoted(string(invalid[0].Name)))
	}
	if left > 0 {
		p.alarm(AlarmTooManyNodes, "", "%d members are left out, a cluster has at most %d", left, fsm.MaxClusterNodes)
	}
	return listed
}

// missing plans for the stored members that the answer lacks.
func (p *planner) missing(listed map[fsm.NodeName]bool) {
	spec := &p.in.Cluster.Spec
	var gone []fsm.Node
	for _, n := range p.in.Cluster.Nodes {
		if listed[n.Name] {
			continue
		}
		if spec.Driver == fsm.DriverStatic {
			p.remove(n, "taken out of the address table")
			continue
		}
		if p.in.Misses[n.Name] >= spec.RemoveAfter {
			switch p.in.Probes[n.Name] {
			case ProbeSilent:
				gone = append(gone, n)
				continue
			case ProbeAnswered:
				p.alarm(AlarmUnlisted, n.Name, "not listed for %d polls, but it answers MQTT", p.in.Misses[n.Name])
			case ProbeRefused:
				p.alarm(AlarmProbeRefused, n.Name, "not listed for %d polls, and upstream.allow forbids a probe of its address", p.in.Misses[n.Name])
			}
		}
		p.suspect(n, spec)
	}
	quota := Quota(len(p.in.Cluster.Nodes))
	if len(gone) > 0 && len(gone)+p.in.Removed > quota {
		for _, n := range gone {
			p.suspect(n, spec)
			p.out.Held = append(p.out.Held, n.Name)
		}
		p.alarm(AlarmRemovalHeld, "", "%d of %d nodes are gone, %d were removed shortly before, and no more than %d go within %d polls without an operator",
			len(gone), len(p.in.Cluster.Nodes), p.in.Removed, quota, spec.RemoveAfter)
		return
	}
	for _, n := range gone {
		p.remove(n, "not listed for many polls and silent on MQTT")
	}
}

// suspect keeps a missing member, with the address that the operator's table gives it by now.
func (p *planner) suspect(n fsm.Node, spec *fsm.ClusterSpec) {
	address := n.Address
	if a, ok := spec.Addresses[n.Name]; ok {
		address = a
	}
	switch {
	case n.State != fsm.NodeSuspect:
		p.upsert(n.Name, address, fsm.NodeSuspect, n.State.String()+" before, now not listed")
	case n.Address != address:
		p.upsert(n.Name, address, fsm.NodeSuspect, "address changed")
	}
}

func (p *planner) remove(n fsm.Node, why string) {
	p.change.Remove = append(p.change.Remove, n.Name)
	p.out.Reasons = append(p.out.Reasons, Reason{Node: n.Name, Text: why})
}

// quoted makes text from outside fit for a message: quoted and cut.
func quoted(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.Quote(s[:most]) + "..."
	}
	return strconv.Quote(s)
}
