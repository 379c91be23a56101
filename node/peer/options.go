package peer

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/fsm"
)

// Options are what a Peer is made from. Config, DataDir, Name and Tables are required.
type Options struct {
	Config  Config
	DataDir string
	// Name, Zone and Release describe this gateway in the roster; APIAddress is where its admin API is reached, host:port.
	Name       string
	Zone       string
	Release    string
	APIAddress string
	// Tables are given to Raft, which alone may apply, snapshot and restore.
	Tables *fsm.Tables
	// Seed holds Identity and Unknown for a cluster that is bootstrapped here; its other fields are made up.
	Seed       fsm.Settings
	Timing     Timing
	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: metrics are kept and not registered
}

// Timing holds the timers. It exists for tests and demonstrations in one process; the zero value is right for a network. A zero field
// takes its default.
type Timing struct {
	Heartbeat time.Duration // Raft heartbeat timeout, 1 s
	Election  time.Duration // Raft election timeout, 1 s
	Lease     time.Duration // Raft leader lease, 500 ms
	Commit    time.Duration // Raft commit timeout, 50 ms
	Hold      time.Duration // how long a write waits for a leader, 5 s
	Handshake time.Duration // of a new connection, 5 s
	View      time.Duration // how long gossip must be unchanged before a bootstrap, 1 s
	Promise   time.Duration // how long a promise to take part in a bootstrap keeps others away, 10 s
	CaughtUp  time.Duration // how long a non-voter must be caught up before promotion, 10 s
	Tick      time.Duration // step of the loops that look after things, 1 s
	Probe     time.Duration // gossip failure detection, 1 s
	Rejoin    time.Duration // how often gossip looks for missing gateways, 15 s
	Leave     time.Duration // how long Close lets gossip say goodbye, 1 s
}

func (t Timing) withDefaults() Timing {
	for _, f := range []struct {
		field   *time.Duration
		standby time.Duration
	}{
		{&t.Heartbeat, time.Second}, {&t.Election, time.Second}, {&t.Lease, 500 * time.Millisecond}, {&t.Commit, 50 * time.Millisecond},
		{&t.Hold, 5 * time.Second}, {&t.Handshake, 5 * time.Second}, {&t.View, time.Second}, {&t.Promise, 10 * time.Second},
		{&t.CaughtUp, 10 * time.Second}, {&t.Tick, time.Second}, {&t.Probe, time.Second}, {&t.Rejoin, 15 * time.Second}, {&t.Leave, time.Second},
	} {
		if *f.field == 0 {
			*f.field = f.standby
		}
	}
	return t
}
