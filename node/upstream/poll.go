package upstream

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"

	"turnout/fsm"
)

const (
	proposeTimeout = 10 * time.Second
	maxBackoff     = 10 * time.Minute
)

// pollLoop follows one cluster under one version of its spec. Its fields belong to the goroutine of run.
type pollLoop struct {
	m       *Manager
	id      fsm.ClusterID
	name    fsm.ClusterName
	version uint64
	spec    fsm.ClusterSpec
	driver  Driver
	log     *slog.Logger

	polls    uint64                  // successful ones
	misses   map[fsm.NodeName]uint32 // polls in a row that lacked a stored node
	removals []removal               // of the last RemoveAfter polls
	refusals int                     // polls in a row that were answered 401 or 403
	status   PollStatus

	cancel context.CancelFunc
	done   chan struct{}
}

// removal remembers how many nodes went in which poll.
type removal struct {
	poll  uint64
	nodes int
}

// follows reports whether the loop is the right one for what the tables hold of its cluster by now. The spec is compared too: tables that
// were restored from elsewhere may come to the same version with another.
func (l *pollLoop) follows(c *fsm.Cluster) bool {
	return c != nil && c.Version == l.version && c.Name == l.name && reflect.DeepEqual(c.Spec, l.spec)
}

// stop ends the loop and waits for it.
func (l *pollLoop) stop() {
	l.cancel()
	<-l.done
}

func (l *pollLoop) run(ctx context.Context) {
	defer close(l.done)
	for {
		err := l.poll(ctx)
		if ctx.Err() != nil {
			return
		}
		l.finish(err)
		l.note(ctx)
		timer := time.NewTimer(l.delay())
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// delay is the time to the next poll: the period of the spec, within a tenth so that clusters do not fall into step, doubled for
// every refusal of the credential in a row, so that no broker takes the gateway for an attacker.
func (l *pollLoop) delay() time.Duration {
	d := time.Duration(l.spec.PollSeconds) * l.m.second
	for range l.refusals {
		if d >= maxBackoff {
			break
		}
		d = min(2*d, maxBackoff)
	}
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// poll gathers, plans and acts, once. Its error is about the answer alone: a proposal that fails is made again from what the
// next poll finds.
func (l *pollLoop) poll(ctx context.Context) error {
	members, err := l.driver.Members(ctx)
	if err != nil {
		return err
	}
	cluster := l.m.o.Tables.Topology().ClusterByID(l.id)
	if !l.follows(cluster) {
		return nil // the manager is about to stop this loop
	}
	l.polls++
	l.removals = slices.DeleteFunc(l.removals, func(r removal) bool { return r.poll+uint64(l.spec.RemoveAfter) <= l.polls })
	in := PlanInput{Cluster: cluster, Answer: members, Misses: l.countMisses(cluster, members)}
	for _, r := range l.removals {
		in.Removed += r.nodes
	}
	in.Probes = probeAll(ctx, l.m.o.Guard, l.due(cluster))
	if ctx.Err() != nil {
		return nil // probes that were cut short must not count as silence
	}
	plan := Plan(in)
	l.status.LastOK, l.status.Members = l.m.o.Now(), len(members)
	l.raise(plan.Alarms)
	l.m.o.Metrics.held.WithLabelValues(string(l.name)).Set(float64(len(plan.Held)))
	l.act(ctx, plan)
	return nil
}

// countMisses brings the counts up to date with an answer. They are kept for stored nodes alone, which bounds them.
func (l *pollLoop) countMisses(c *fsm.Cluster, members []Member) map[fsm.NodeName]uint32 {
	listed := make(map[fsm.NodeName]bool, len(members))
	for _, m := range members {
		listed[m.Name] = true
	}
	next := map[fsm.NodeName]uint32{}
	for _, n := range c.Nodes {
		if !listed[n.Name] {
			next[n.Name] = l.misses[n.Name] + 1
		}
	}
	l.misses = next
	return next
}

// due returns the nodes that have been missing for long enough to ask themselves.
func (l *pollLoop) due(c *fsm.Cluster) []fsm.Node {
	if l.spec.Driver == fsm.DriverStatic {
		return nil
	}
	var out []fsm.Node
	for _, n := range c.Nodes {
		if l.misses[n.Name] >= l.spec.RemoveAfter {
			out = append(out, n)
		}
	}
	return out
}

// act proposes a plan's change, if it has one.
func (l *pollLoop) act(ctx context.Context, plan PlanResult) {
	if plan.Change == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	res, err := l.m.o.Proposer.Propose(ctx, plan.Change)
	if err == nil {
		err = res.Err()
	}
	switch fsm.CodeOf(err) {
	case fsm.CodeOK, fsm.CodeTimeout, fsm.CodeUnknown:
		// An outcome that is not known counts as a removal: too careful is the right side to err on.
		if n := len(plan.Change.Remove); n > 0 {
			l.removals = append(l.removals, removal{poll: l.polls, nodes: n})
			l.m.o.Metrics.removed.WithLabelValues(string(l.name)).Add(float64(n))
		}
	}
	if err != nil {
		level := slog.LevelWarn
		if errors.Is(err, fsm.ErrConflict) {
			level = slog.LevelDebug // somebody else changed the members meanwhile
		}
		l.log.Log(ctx, level, "discovery: change not written, planning again at the next poll", "code", string(fsm.CodeOf(err)))
		return
	}
	for _, r := range plan.Reasons {
		l.log.Info("discovery: member changed", "node", string(r.Node), "reason", r.Text, "index", res.Index)
	}
}

// finish turns the outcome of a poll into status, metrics and, when something is new, log lines.
func (l *pollLoop) finish(err error) {
	metrics := l.m.o.Metrics
	class := ClassOf(err)
	result := "ok"
	if err != nil {
		result = string(class)
	}
	metrics.polls.WithLabelValues(string(l.name), result).Inc()
	l.refusals++
	if class != ClassUnauthorized {
		l.refusals = 0
	}
	if err != nil {
		l.raise(failureAlarms(l.status.Alarms, err))
	}
	switch {
	case err != nil && l.status.LastError != class:
		l.log.Warn("discovery: poll failed, the stored members stay", "class", string(class), "error", err)
	case err == nil && l.status.LastError != "":
		l.log.Info("discovery: polls succeed again", "members", l.status.Members)
	}
	l.status.LastError = class
	if !l.status.LastOK.IsZero() {
		metrics.lastOK.WithLabelValues(string(l.name)).Set(float64(l.status.LastOK.UnixMilli()) / 1000)
	}
	if c := l.m.o.Tables.Topology().ClusterByID(l.id); c != nil {
		metrics.setNodes(c)
	}
	metrics.setAlarms(l.name, l.status.Alarms)
	s := l.status
	l.m.setStatus(l.name, &s)
}

// note writes into the tables what keeps discovery from following the cluster, when that has changed: the operator asks any gateway, and
// only the leader polls.
func (l *pollLoop) note(ctx context.Context) {
	c := l.m.o.Tables.Topology().ClusterByID(l.id)
	text := l.status.trouble()
	if !l.follows(c) || c.Trouble == text {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	if _, err := l.m.o.Proposer.Propose(ctx, &fsm.NoteDiscovery{Cluster: l.name, Trouble: text}); err != nil {
		l.log.Debug("discovery: trouble not written, trying again at the next poll", "code", string(fsm.CodeOf(err)))
	}
}

// trouble puts a status into words, empty when all is well.
func (s *PollStatus) trouble() string {
	var parts []string
	if s.LastError != "" {
		parts = append(parts, "polls fail: "+string(s.LastError))
	}
	for _, a := range s.Alarms {
		switch {
		case string(a.Kind) == string(s.LastError):
		case a.Node != "":
			parts = append(parts, string(a.Kind)+" "+string(a.Node))
		default:
			parts = append(parts, string(a.Kind))
		}
	}
	text := strings.Map(func(r rune) rune { // a broker's word for a node may hold anything
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(strings.Join(parts, "; "), "?"))
	if len(text) > fsm.MaxNameBytes {
		text = strings.ToValidUTF8(text[:fsm.MaxNameBytes-3], "") + "..."
	}
	return text
}

// failureAlarms keeps what the last good plan raised, since nothing was learned since, and adds what an operator must mend.
func failureAlarms(standing []Alarm, err error) []Alarm {
	byClass := map[Class]AlarmKind{ClassUnauthorized: AlarmUnauthorized, ClassNoCredential: AlarmCredential, ClassRefusedAddress: AlarmAddress}
	out := slices.DeleteFunc(slices.Clone(standing), func(a Alarm) bool {
		return a.Kind == AlarmUnauthorized || a.Kind == AlarmCredential || a.Kind == AlarmAddress
	})
	var e *Error
	if kind, ok := byClass[ClassOf(err)]; ok && errors.As(err, &e) {
		out = append(out, Alarm{Kind: kind, Detail: e.Detail})
	}
	return out
}

// raise replaces the standing alarms and logs those that are new. An alarm is the same as long as kind and node are.
func (l *pollLoop) raise(alarms []Alarm) {
	for _, a := range alarms {
		if !slices.ContainsFunc(l.status.Alarms, func(b Alarm) bool { return a.Kind == b.Kind && a.Node == b.Node }) {
			l.log.Warn("discovery: an operator is needed", "alarm", string(a.Kind), "node", string(a.Node), "detail", a.Detail)
		}
	}
	l.status.Alarms = alarms
}
