package harness

import (
	"slices"
	"strings"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// evictTimeout bounds the wait for a connection that was told to go.
const evictTimeout = 5 * time.Second

// session is a client's state at one broker. Its fields are guarded by Broker.mu after it is in the table.
type session struct {
	clientID, username string
	version            byte
	cleanStart         bool
	expiry             uint32
	keepAlive          uint16
	remote             string
	created            time.Time
	connectedAt        time.Time
	disconnectedAt     time.Time
	connected          bool
	cl                 *mqtt.Client
	conn               *brokerConn
}

// detached is a session taken out of its broker.
type detached struct {
	run        *brokerRun
	cl         *mqtt.Client
	version    byte
	persistent bool // it outlives its connection
	created    time.Time
	subs       map[string]packets.Subscription
	inflight   *mqtt.Inflight
}

// domain is a set of brokers within which a client identifier is unique and messages reach every subscriber.
type domain struct {
	mu    sync.Mutex
	nodes []*Broker
	ids   map[string]*idLock
}

// idLock serialises the connections of one client identifier; users counts holders and waiters.
type idLock struct {
	sync.Mutex
	users int
}

func newDomain() *domain { return &domain{ids: make(map[string]*idLock)} }

func (d *domain) add(b *Broker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nodes = append(d.nodes, b)
}

func (d *domain) remove(b *Broker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nodes = slices.DeleteFunc(slices.Clone(d.nodes), func(n *Broker) bool { return n == b })
}

func (d *domain) list() []*Broker {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.nodes)
}

func (d *domain) lock(id string) (unlock func()) {
	d.mu.Lock()
	l := d.ids[id]
	if l == nil {
		l = &idLock{}
		d.ids[id] = l
	}
	l.users++
	d.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		d.mu.Lock()
		defer d.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(d.ids, id)
		}
	}
}

// claim makes the caller the only owner of client identifier id: whoever holds it on any node is disconnected with
// "session taken over" and its goroutine has ended when claim returns. The caller runs unlock once its own session
// stands. old is the session that was found, nil if there was none.
func (d *domain) claim(id string) (old *detached, unlock func()) {
	unlock = d.lock(id)
	return d.detach(id, packets.ErrSessionTakenOver), unlock
}

func (d *domain) detach(id string, code packets.Code) *detached {
	var found *detached
	for _, n := range d.list() {
		if old := n.detach(id, code); old != nil {
			found = old
		}
	}
	return found
}

// kick destroys the session of id wherever it is and reports whether there was one.
func (d *domain) kick(id string) bool {
	unlock := d.lock(id)
	defer unlock()
	return d.detach(id, packets.ErrAdministrativeAction) != nil
}

// detach takes the session of id out of this broker, disconnecting it with code if it is connected.
func (b *Broker) detach(id string, code packets.Code) *detached {
	b.mu.Lock()
	run := b.run
	var s *session
	if run != nil {
		s = run.sessions[id]
	}
	connected := s != nil && s.connected
	b.mu.Unlock()
	if s == nil {
		return nil
	}
	if connected {
		// A peer that reads nothing must not hold up the newcomer. The socket is closed, not the server's client: told
		// to stop, the server may take the end for a regular one and drop the Will.
		_ = s.conn.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		_ = s.cl.WritePacket(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Disconnect},
			ReasonCode:  code.Code,
			Properties:  packets.Properties{ReasonString: code.Reason},
		})
		_ = s.conn.Close()
		select {
		case <-s.conn.done:
		case <-time.After(evictTimeout):
			b.log.Warn("evicted connection lingers", "remote", s.remote)
		}
	}
	b.mu.Lock()
	old := &detached{run: run, cl: s.cl, version: s.version, created: s.created, persistent: run.sessions[id] == s && !s.connected}
	if run.sessions[id] == s {
		delete(run.sessions, id)
	}
	b.mu.Unlock()
	if known, ok := run.server.Clients.Get(id); ok && known == s.cl {
		old.subs = s.cl.State.Subscriptions.GetAll()
		old.inflight = s.cl.State.Inflight.Clone()
		run.server.UnsubscribeClient(s.cl)
		s.cl.ClearInflights()
		run.server.Clients.Delete(id)
	}
	return old
}

// stopDelayedWill withdraws a Will that waits for its delay, because the session goes on elsewhere (MQTT 5.0
// §3.1.3.2.2). A DISCONNECT in the old client's name is the server's only public way to do it.
func (o *detached) stopDelayedWill() {
	_ = o.run.server.InjectPacket(o.cl, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
}

// adopt leaves a disconnected session for id at the server, for the connecting client to inherit.
func (run *brokerRun) adopt(id string, old *detached) {
	ghost := run.server.NewClient(nil, "tcp", id, false)
	ghost.Properties.ProtocolVersion = old.version
	if old.inflight != nil {
		ghost.State.Inflight = old.inflight
	}
	for filter, sub := range old.subs {
		run.server.Topics.Subscribe(id, sub)
		ghost.State.Subscriptions.Add(filter, sub)
	}
	run.server.Clients.Add(ghost)
}

// connEnded settles the session of a connection whose goroutine is about to end.
func (b *Broker) connEnded(run *brokerRun, c *brokerConn) {
	s := c.session
	if s == nil {
		return
	}
	r := Record{
		Event: EventDisconnect, ClientID: s.clientID, Username: s.username, Remote: s.remote,
		ProtocolVersion: s.version, Graceful: s.cl.StopCause() == packets.CodeDisconnect,
	}
	c.traffic(&r)
	b.addRecord(r)
	b.mu.Lock()
	defer b.mu.Unlock()
	s.connected, s.disconnectedAt = false, time.Now()
	if c.expired && run.sessions[s.clientID] == s {
		delete(run.sessions, s.clientID)
	}
}

// inject publishes pk to the subscribers at this server, in the name of nobody.
func (run *brokerRun) inject(pk packets.Packet) error {
	pk.PacketID = 0
	if pk.FixedHeader.Qos > 0 {
		pk.PacketID = 1 // the server demands one and does not use it
	}
	pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = 0, false
	pk.Expiry = 0
	return run.server.InjectPacket(run.inline, pk)
}

// forward passes a message on to the other nodes. They receive it from their inline client, whose messages are not
// forwarded again, so there is no loop.
func (d *domain) forward(from *Broker, pk packets.Packet) {
	for _, n := range d.list() {
		if n == from {
			continue
		}
		if run := n.current(); run != nil {
			if err := run.inject(pk.Copy(false)); err != nil {
				n.log.Debug("message not forwarded", "reason", err.Error())
			}
		}
	}
}

// copyRetained gives a starting node the retained messages of a running one.
func (d *domain) copyRetained(to *Broker, run *brokerRun) {
	for _, n := range d.list() {
		other := n.current()
		if n == to || other == nil {
			continue
		}
		for topic, pk := range other.server.Topics.Retained.GetAll() {
			if !strings.HasPrefix(topic, mqtt.SysPrefix) {
				run.server.Topics.RetainMessage(pk.Copy(false))
			}
		}
		return
	}
}
