package proxy

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/proxy/mqtt"
)

// result is how a connection from a device went, as a metric label. Besides the ones here the reasons of mqtt.ParseError and of
// Refused are results.
type result string

const (
	resultAccepted     result = "accepted"       // CONNACK success, handed to the relay
	resultBroker       result = "broker_refused" // the broker's own refusal, passed on
	resultProbe        result = "probe"          // closed without a byte, as health checks do
	resultHangup       result = "hangup"         // the device left before it was answered
	resultTimeout      result = "timeout"        // CONNECT not complete in time
	resultProxyHeader  result = "proxy_header"   // PROXY header missing, malformed or from an untrusted source
	resultTLS          result = "tls_handshake"
	resultKeyTooLong   result = "key_too_long"
	resultNotReady     result = "not_ready"   // the tables hold no settings yet, or have not caught up
	resultUnavailable  result = "unavailable" // no candidate could serve
	resultShuttingDown result = "shutting_down"
)

// attempt results, as a metric label.
const (
	attemptAccepted    = "accepted"
	attemptRefused     = "refused"      // CONNACK with a code about the device
	attemptCannotServe = "cannot_serve" // CONNACK with a code about the node
	attemptDial        = "dial"
	attemptLocal       = "local"      // no descriptor, port or memory left here for a dial
	attemptClosed      = "closed"     // before CONNACK
	attemptTimeout     = "timeout"    // no CONNACK in time
	attemptBadAnswer   = "bad_answer" // not MQTT, or another packet first
	attemptAbandoned   = "abandoned"  // the device left, its deadline was over, or the gateway is closing
)

// Metrics of the data plane. Labels are bounded: listeners and clusters by configuration, results by the code.
type Metrics struct {
	connects  *prometheus.CounterVec // listener, result
	attempts  *prometheus.CounterVec // cluster, result
	duration  prometheus.Histogram
	ends      *prometheus.CounterVec // cause
	bindings  *prometheus.CounterVec // result
	accepting *prometheus.CounterVec // listener
}

// NewMetrics registers the counters of the data plane; with a nil Registerer they only count. The error is about a name that is
// registered already.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		connects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "turnout_connects_total", Help: "Connections from devices, by listener and by how they went up to CONNACK.",
		}, []string{"listener", "result"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "turnout_upstream_attempts_total", Help: "CONNECTs handed to broker nodes, by cluster and by what came back.",
		}, []string{"cluster", "result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "turnout_connect_duration_seconds", Help: "Time from accept to a successful CONNACK.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "turnout_session_ends_total", Help: "Relayed sessions that ended, by what ended them.",
		}, []string{"cause"}),
		bindings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "turnout_bindings_total", Help: "Bindings of devices to nodes, by what became of them.",
		}, []string{"result"}),
		accepting: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "turnout_accept_errors_total", Help: "Errors of accept, each followed by a pause.",
		}, []string{"listener"}),
	}
	for _, r := range bindingResults() {
		m.bindings.WithLabelValues(r)
	}
	return m, register(r, m.connects, m.attempts, m.duration, m.ends, m.bindings, m.accepting)
}

// register adds collectors to r, if there is one.
func register(r prometheus.Registerer, cs ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// results lists every value of the label result, so that each counter of a listener exists from the start.
func results() []result {
	all := []result{
		resultAccepted, resultBroker, resultProbe, resultHangup, resultTimeout, resultProxyHeader, resultTLS, resultKeyTooLong,
		resultNotReady, resultUnavailable, resultShuttingDown,
	}
	for _, r := range mqtt.Reasons() {
		all = append(all, result(r))
	}
	for r := RefusedBlocked; r <= RefusedPin; r++ {
		all = append(all, result(r.String()))
	}
	return all
}

// listenerMetrics are the counters of one listener, looked up once.
func (m *Metrics) listenerMetrics(name string) map[result]prometheus.Counter {
	byResult := map[result]prometheus.Counter{}
	for _, r := range results() {
		byResult[r] = m.connects.WithLabelValues(name, string(r))
	}
	return byResult
}

// sessionCollector shows the live sessions by cluster at the time of the scrape.
type sessionCollector struct {
	sessions *registry
	views    *views
	desc     *prometheus.Desc
}

func newSessionCollector(s *registry, v *views) *sessionCollector {
	return &sessionCollector{sessions: s, views: v, desc: prometheus.NewDesc(
		"turnout_sessions", "Relayed sessions, by cluster; \"removed\" is a cluster that is gone.", []string{"cluster"}, nil)}
}

// Describe implements prometheus.Collector.
func (c *sessionCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c *sessionCollector) Collect(ch chan<- prometheus.Metric) {
	topo := c.views.tables.Topology()
	byName := map[string]int{}
	for _, cl := range topo.Clusters {
		byName[string(cl.Name)] = 0
	}
	for place, n := range c.sessions.counts() {
		if cl := topo.ClusterByID(place.Cluster); cl != nil {
			byName[string(cl.Name)] += n
		} else {
			byName["removed"] += n
		}
	}
	for name, n := range byName {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), name)
	}
}
