package upstream

import (
	"container/list"
	"crypto/sha256"
	"sync"
	"time"

	"turnout/fsm"
)

// recentCommands remembers results by device and command ID, so that a repeated request is not sent twice. It holds at most
// idempotencySize finished commands, the oldest go first, and besides them those on their way, which maxInFlight bounds.
type recentCommands struct {
	now func() time.Time

	mu      sync.Mutex // guards everything below, and result of a flight until its done is closed
	flights map[recentKey]*flight
	order   *list.List // finished *flight, the oldest in front
}

type recentKey struct {
	device fsm.DeviceKey
	id     string
}

// flight is one command. result is valid once done is closed.
type flight struct {
	key    recentKey
	hash   [sha256.Size]byte
	done   chan struct{}
	result Result
	until  time.Time
	place  *list.Element // nil while on its way
}

func newRecentCommands(now func() time.Time) *recentCommands {
	return &recentCommands{now: now, flights: map[recentKey]*flight{}, order: list.New()}
}

// begin returns the flight of a command. first tells the caller to carry it out and to call finish. why refuses an ID that was used
// for another payload. A command without an ID is always a new one.
func (r *recentCommands) begin(device fsm.DeviceKey, id string, payload []byte) (f *flight, first bool, why string) {
	f = &flight{key: recentKey{device, id}, hash: sha256.Sum256(payload), done: make(chan struct{})}
	if id == "" {
		return f, true, ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	if have := r.flights[f.key]; have != nil {
		if have.hash != f.hash {
			return nil, false, "the command id was used for another payload"
		}
		return have, false, ""
	}
	r.flights[f.key] = f
	return f, true, ""
}

// finish publishes the result and remembers it, unless nothing was sent.
func (r *recentCommands) finish(f *flight, result Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f.result = result
	close(f.done)
	if f.key.id == "" {
		return
	}
	if result.unsent {
		delete(r.flights, f.key)
		return
	}
	f.until = r.now().Add(idempotencyTime)
	f.place = r.order.PushBack(f)
	r.expire()
}

// expire forgets what is too old or too much. The caller holds mu.
func (r *recentCommands) expire() {
	now := r.now()
	for e := r.order.Front(); e != nil; e = r.order.Front() {
		f := e.Value.(*flight)
		if r.order.Len() <= idempotencySize && now.Before(f.until) {
			return
		}
		r.order.Remove(e)
		delete(r.flights, f.key)
	}
}
