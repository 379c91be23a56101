package peer

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the figures of this package. What Raft knows is read when it is asked for.
type Metrics struct {
	proposals *prometheus.CounterVec
	forwarded prometheus.Counter
	refused   *prometheus.CounterVec

	peer  atomic.Pointer[Peer]
	descs struct {
		state, leader, term, applied, contact, peers, gossip, ready *prometheus.Desc
	}
}

// NewMetrics registers the metrics. Registering twice with one Registerer is an error.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		proposals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "turnout_raft_proposals_total", Help: "Commands proposed on this gateway, by result: ok, refused, no_leader, unknown.",
		}, []string{"result"}),
		forwarded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "turnout_raft_forwarded_total", Help: "Commands sent from this gateway to the leader.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "turnout_peer_handshakes_refused_total", Help: "Connections refused on the peer port, by reason.",
		}, []string{"reason"}),
	}
	for _, result := range []string{outcomeOK, outcomeRefused, outcomeNoLeader, outcomeUnknown} {
		m.proposals.WithLabelValues(result)
	}
	for _, reason := range refusalNames[1:] {
		m.refused.WithLabelValues(reason)
	}
	d := &m.descs
	d.state = prometheus.NewDesc("turnout_raft_state", "1 for the state that this gateway is in.", []string{"state"}, nil)
	d.leader = prometheus.NewDesc("turnout_raft_leader", "1 if a leader is known.", nil, nil)
	d.term = prometheus.NewDesc("turnout_raft_term", "Present term.", nil, nil)
	d.applied = prometheus.NewDesc("turnout_raft_applied_index", "Index of the last command that the tables finished.", nil, nil)
	d.contact = prometheus.NewDesc("turnout_raft_last_contact_seconds", "Time since the leader was heard from; 0 on the leader, absent if it never was.", nil, nil)
	d.peers = prometheus.NewDesc("turnout_raft_peers", "Gateways in the Raft configuration.", []string{"suffrage"}, nil)
	d.gossip = prometheus.NewDesc("turnout_gossip_members", "Gateways seen in gossip.", []string{"state"}, nil)
	d.ready = prometheus.NewDesc("turnout_peer_ready", "1 once this gateway is a member with complete tables and a row in the roster.", nil, nil)
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.proposals, m.forwarded, m.refused, m} {
		errs = append(errs, r.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	d := &m.descs
	for _, desc := range []*prometheus.Desc{d.state, d.leader, d.term, d.applied, d.contact, d.peers, d.gossip, d.ready} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	p := m.peer.Load()
	if p == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := p.Status()
	for _, state := range []State{StateEmpty, StateFollower, StateCandidate, StateLeader, StateRemoved, StateStopped} {
		gauge(m.descs.state, number(s.State == state), string(state))
	}
	gauge(m.descs.leader, number(s.Leader != ""))
	gauge(m.descs.term, float64(s.Term))
	gauge(m.descs.applied, float64(s.TableIndex))
	gauge(m.descs.ready, number(s.Ready))
	if s.LastContact >= 0 {
		gauge(m.descs.contact, s.LastContact.Seconds())
	}
	voters, alive := 0, 0
	for _, server := range s.Servers {
		if server.Voter {
			voters++
		}
	}
	for _, member := range s.Members {
		if member.Alive {
			alive++
		}
	}
	gauge(m.descs.peers, float64(voters), "voter")
	gauge(m.descs.peers, float64(len(s.Servers)-voters), "nonvoter")
	gauge(m.descs.gossip, float64(alive), "alive")
	gauge(m.descs.gossip, float64(len(s.Members)-alive), "gone")
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
