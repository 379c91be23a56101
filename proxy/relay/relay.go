// Package relay carries bytes between a device and its broker node once the CONNACK is known. It owns both connections
// of a [Pair] from [Engine.Start] on and closes them; whoever started the pair never touches them again.
//
// Data flows like this. Bytes that were read before the start ([Pair.ToUpstream], [Pair.ToDevice]) go out first, then
// each side's bytes go to the other, unchanged and in order. When one side ends its stream the end is passed on as a
// half-close and the other side has [Options.Linger] left to finish. When one side breaks, the other is sent what came before and
// then the end of its stream (to MQTT that is as abrupt as a reset), and has a few seconds to close. A side that takes nothing makes the engine stop reading from its counterpart: a session holds at most one buffer for
// each direction. [Pair.Done] is called exactly once, after both connections are closed.
//
// The package refuses to know MQTT, routes and refusals. It imports nothing of Turnout. The engine here runs two
// goroutines for each session, but an idle one holds no buffer; nothing in the interface needs a goroutine, so that an
// event-driven engine can stand in its place.
package relay

import "net"

// Pair is a device and its broker node, with what is still owed to either of them.
type Pair struct {
	// Device and Upstream are owned by the engine from Start on. Their deadlines must be off.
	Device, Upstream net.Conn
	// ToUpstream and ToDevice are sent before anything that the engine reads. The engine owns the slices.
	ToUpstream, ToDevice []byte
	// Done is told how the session went: once, from any goroutine, possibly before Start returns. It must not block.
	Done func(Stats)
}

// Stats is the account of a finished session.
type Stats struct {
	FromDevice uint64 // bytes written to the broker node, ToUpstream included
	ToDevice   uint64 // bytes written to the device, ToDevice included
	Cause      Cause
}

// Cause is what ended a session first.
type Cause uint8

// The causes.
const (
	CauseDeviceEnd     Cause = iota + 1 // the device ended its stream
	CauseUpstreamEnd                    // the broker node ended its stream
	CauseDeviceReset                    // the device's connection broke
	CauseUpstreamReset                  // the broker node's connection broke
	CauseShutdown                       // the gateway is closing
)

// String gives a metric label such as "device_end".
func (c Cause) String() string {
	switch c {
	case CauseDeviceEnd:
		return "device_end"
	case CauseUpstreamEnd:
		return "upstream_end"
	case CauseDeviceReset:
		return "device_reset"
	case CauseUpstreamReset:
		return "upstream_reset"
	case CauseShutdown:
		return "shutdown"
	}
	return "unknown"
}

// Causes lists every cause, so that a counter can be created for each at start.
func Causes() []Cause {
	return []Cause{CauseDeviceEnd, CauseUpstreamEnd, CauseDeviceReset, CauseUpstreamReset, CauseShutdown}
}

// Session is a running pair.
type Session interface {
	// Close ends the session with this cause unless it has ended already. It does not wait; Done is called in the end.
	Close(Cause)
}

// Engine relays pairs.
type Engine interface {
	// Start takes over the pair. On a closed engine the pair is closed at once, and Done called.
	Start(Pair) Session
	// Totals are the bytes carried so far, those of running sessions included.
	Totals() (fromDevice, toDevice uint64)
	// Close ends every session with CauseShutdown and waits until all of them are done. It is idempotent.
	Close()
}
