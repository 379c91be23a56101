package proxy

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"turnout/fsm"
	"turnout/proxy/relay"
)

// registryShards keeps connects and ends on different cores from meeting at one lock.
const registryShards = 64

// Place is where a session runs.
type Place struct {
	Cluster fsm.ClusterID
	Node    fsm.NodeID
}

// liveSession is a session in the relay.
type liveSession struct {
	id       uint64
	key      fsm.DeviceKey // empty when the device has none
	place    Place
	listener string
	since    time.Time
	relay    relay.Session // set by attach
}

// registry knows the live sessions of this gateway. Several may have the same key.
type registry struct {
	next   atomic.Uint64
	total  atomic.Int64
	shards [registryShards]registryShard
}

type registryShard struct {
	mu       sync.Mutex
	sessions map[uint64]*liveSession
	places   map[Place]int
}

func newRegistry() *registry {
	r := &registry{}
	for i := range r.shards {
		r.shards[i].sessions = map[uint64]*liveSession{}
		r.shards[i].places = map[Place]int{}
	}
	return r
}

func (r *registry) shard(id uint64) *registryShard { return &r.shards[id%registryShards] }

// add enters a session and gives it its id.
func (r *registry) add(s *liveSession) {
	s.id = r.next.Add(1)
	sh := r.shard(s.id)
	sh.mu.Lock()
	sh.sessions[s.id] = s
	sh.places[s.place]++
	sh.mu.Unlock()
	r.total.Add(1)
}

// attach gives a session its handle in the relay, once it has one.
func (r *registry) attach(s *liveSession, h relay.Session) {
	sh := r.shard(s.id)
	sh.mu.Lock()
	s.relay = h
	sh.mu.Unlock()
}

// remove takes a session out.
func (r *registry) remove(s *liveSession) {
	sh := r.shard(s.id)
	sh.mu.Lock()
	delete(sh.sessions, s.id)
	if sh.places[s.place]--; sh.places[s.place] == 0 {
		delete(sh.places, s.place)
	}
	sh.mu.Unlock()
	r.total.Add(-1)
}

// counts returns the number of sessions at each place that has any.
func (r *registry) counts() map[Place]int {
	sum := map[Place]int{}
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		for p, n := range sh.places {
			sum[p] += n
		}
		sh.mu.Unlock()
	}
	return sum
}

// closeAll ends every session that is attached.
func (r *registry) closeAll(c relay.Cause) {
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		for _, s := range sh.sessions {
			if s.relay != nil {
				s.relay.Close(c)
			}
		}
		sh.mu.Unlock()
	}
}

// tracker knows the connections that are not in the relay: those being connected, and those being closed slowly. Shutdown closes them.
type tracker struct {
	mu     sync.Mutex
	conns  map[io.Closer]struct{}
	closed bool
}

func newTracker() *tracker { return &tracker{conns: map[io.Closer]struct{}{}} }

// add enters c. After closeAll it closes c instead and returns false.
func (t *tracker) add(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = c.Close()
		return false
	}
	t.conns[c] = struct{}{}
	return true
}

// remove takes c out; it is the caller's again.
func (t *tracker) remove(c net.Conn) {
	t.mu.Lock()
	delete(t.conns, c)
	t.mu.Unlock()
}

// closeAll closes everything and whatever is still to come.
func (t *tracker) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for c := range t.conns {
		_ = c.Close()
	}
}
