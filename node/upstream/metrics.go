package upstream

import (
	"github.com/prometheus/client_golang/prometheus"

	"turnout/fsm"
)

// Metrics of discovery and commands. Labels are names of clusters in the tables and closed sets of words.
type Metrics struct {
	polls    *prometheus.CounterVec
	lastOK   *prometheus.GaugeVec
	nodes    *prometheus.GaugeVec
	alarms   *prometheus.GaugeVec
	held     *prometheus.GaugeVec
	removed  *prometheus.CounterVec
	commands *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "turnout", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "turnout", Name: name, Help: help}, labels)
	}
	m := &Metrics{
		polls:    counter("upstream_polls_total", "Polls of broker clusters by result, ok or the class of the failure.", "cluster", "result"),
		lastOK:   gauge("upstream_last_success_timestamp_seconds", "Time of the last successful poll of a broker cluster.", "cluster"),
		nodes:    gauge("upstream_nodes", "Members of a broker cluster in the tables by state, as the leader's discovery sees them.", "cluster", "state"),
		alarms:   gauge("upstream_alarms", "Standing alarms of discovery by kind.", "cluster", "kind"),
		held:     gauge("upstream_removals_held", "Nodes that are gone and wait for an operator to remove them.", "cluster"),
		removed:  counter("upstream_removals_total", "Nodes that discovery removed.", "cluster"),
		commands: counter("commands_total", "Commands to devices by outcome.", "cluster", "kind", "outcome"),
	}
	r.MustRegister(m.polls, m.lastOK, m.nodes, m.alarms, m.held, m.removed, m.commands)
	return m
}

// leave takes away the gauges of a cluster that this gateway no longer polls.
func (m *Metrics) leave(cluster fsm.ClusterName) {
	by := prometheus.Labels{"cluster": string(cluster)}
	for _, g := range []*prometheus.GaugeVec{m.lastOK, m.nodes, m.alarms, m.held} {
		g.DeletePartialMatch(by)
	}
}

// forget takes away everything discovery counted for a cluster that is no longer in the tables.
func (m *Metrics) forget(cluster fsm.ClusterName) {
	m.leave(cluster)
	by := prometheus.Labels{"cluster": string(cluster)}
	m.polls.DeletePartialMatch(by)
	m.removed.DeletePartialMatch(by)
}

func (m *Metrics) setNodes(c *fsm.Cluster) {
	count := map[fsm.NodeState]int{}
	for _, n := range c.Nodes {
		count[n.State]++
	}
	for _, s := range []fsm.NodeState{fsm.NodeUp, fsm.NodeDown, fsm.NodeSuspect} {
		m.nodes.WithLabelValues(string(c.Name), s.String()).Set(float64(count[s]))
	}
}

func (m *Metrics) setAlarms(cluster fsm.ClusterName, alarms []Alarm) {
	count := map[AlarmKind]int{}
	for _, a := range alarms {
		count[a.Kind]++
	}
	for _, k := range alarmKinds() {
		m.alarms.WithLabelValues(string(cluster), string(k)).Set(float64(count[k]))
	}
}
