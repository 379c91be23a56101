package proxy

import (
	"sync"
	"sync/atomic"
	"time"

	"turnout/fsm"
)

// The cool-down of a node grows from the first to the second value, doubling. It is short: a device whose home is back should
// be home soon.
const (
	firstCoolDown = 250 * time.Millisecond
	mostCoolDown  = 2 * time.Second
	// mostDoubts is how many devices in a row a node may leave unserved before it is taken for failing.
	mostDoubts = 3
)

// health is what this gateway has seen of broker nodes while connecting devices, shared by all listeners. It never takes a
// node away: it only says which nodes to try later.
type health struct {
	now    func() time.Time
	ailing atomic.Int32 // len(nodes): the way past the lock while all is well

	mu    sync.Mutex
	nodes map[fsm.NodeID]*ailment
}

// ailment is a node whose last attempt failed.
type ailment struct {
	doubts   int       // answers that may be about the device
	failures int       // 0: never in a cool-down, only doubted
	until    time.Time // end of the cool-down
	probing  bool      // one attempt after the cool-down is under way
}

func newHealth(now func() time.Time) *health {
	return &health{now: now, nodes: map[fsm.NodeID]*ailment{}}
}

// cooling reports whether others should be tried before this node.
func (h *health) cooling(id fsm.NodeID) bool {
	if h == nil || h.ailing.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.nodes[id]
	return a != nil && (a.probing || h.now().Before(a.until))
}

// begin announces an attempt. It is false when others should be tried first: the node is in its cool-down, or somebody else
// is trying it already. An attempt made all the same needs no other treatment.
func (h *health) begin(id fsm.NodeID) bool {
	if h.ailing.Load() == 0 {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.nodes[id]
	switch {
	case a == nil, a.failures == 0:
		return true
	case a.probing || h.now().Before(a.until):
		return false
	}
	a.probing = true
	return true
}

// succeeded ends an attempt: the node served or refused a device by itself.
func (h *health) succeeded(id fsm.NodeID) {
	if h.ailing.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.nodes, id)
	h.ailing.Store(int32(len(h.nodes)))
}

// doubted ends an attempt: the node took the connection and did not serve the device. That may be about this device alone (EMQX answers 0x89,
// and 0x03 to 3.x, for a client identifier that is locked; an authenticator may hang over one password), and one such device must not
// keep the others from home. Several in a row, with nobody served in between, are a failure.
func (h *health) doubted(id fsm.NodeID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.ailment(id)
	if a.doubts++; a.failures > 0 || a.doubts >= mostDoubts {
		h.fail(a)
	}
}

// failed ends an attempt: the node could not be reached. Failures during a cool-down count as one, so
// that a burst of devices doesn't lengthen it.
func (h *health) failed(id fsm.NodeID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail(h.ailment(id))
}

// ailment is the one of a node, a new one if need be.
func (h *health) ailment(id fsm.NodeID) *ailment {
	a := h.nodes[id]
	if a == nil {
		a = &ailment{}
		h.nodes[id] = a
		h.ailing.Store(int32(len(h.nodes)))
	}
	return a
}

// fail begins a cool-down, unless there is one.
func (h *health) fail(a *ailment) {
	now := h.now()
	if now.Before(a.until) {
		return
	}
	pause := min(firstCoolDown<<min(a.failures, 8), mostCoolDown)
	a.failures++
	a.until, a.probing = now.Add(pause), false
}

// released ends an attempt that says nothing about the node.
func (h *health) released(id fsm.NodeID) {
	if h.ailing.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := h.nodes[id]; a != nil {
		a.probing = false
	}
}

// forget drops nodes that are gone.
func (h *health) forget(member func(fsm.NodeID) bool) {
	if h.ailing.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.nodes {
		if !member(id) {
			delete(h.nodes, id)
		}
	}
	h.ailing.Store(int32(len(h.nodes)))
}
