package node

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/fsm"
)

// identityAlarm is 1 while the identity template of this gateway's file is not the replicated one. The replicated one counts; a file that
// says otherwise would found the next cluster differently, and misleads whoever reads it.
type identityAlarm struct {
	gauge prometheus.Gauge
}

func newIdentityAlarm(r prometheus.Registerer) (*identityAlarm, error) {
	a := &identityAlarm{gauge: prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "turnout", Name: "identity_differs",
		Help: "1 while bootstrap.identity of this gateway's configuration is not the replicated identity template.",
	})}
	return a, r.Register(a.gauge)
}

// watchIdentity follows the replicated settings until ctx ends.
func (n *Node) watchIdentity(ctx context.Context) {
	var topo *fsm.Topology
	differs := false
	for {
		next, err := n.tables.WaitTopology(ctx, topo)
		if err != nil {
			return
		}
		topo = next
		have := topo.Settings.Identity
		was := differs
		differs = have != "" && have != n.config.Bootstrap.Identity
		n.identity.gauge.Set(0)
		if differs {
			n.identity.gauge.Set(1)
		}
		if differs && !was {
			n.log.Warn("bootstrap.identity of the configuration is not the replicated identity template, which counts",
				"configured", n.config.Bootstrap.Identity, "replicated", have)
		}
	}
}
