package upstream

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"turnout/fsm"
)

const (
	mqttIdle       = 5 * time.Minute  // an unused connection lives this long
	sweepPeriod    = 30 * time.Second // how often idle ones are looked for
	connectTimeout = 4 * time.Second  // TCP, TLS, CONNECT and CONNACK of one protocol version
	mqttKeepAlive  = 30               // seconds
)

// mqttPool holds the MQTT connections of channels of kind "mqtt": one for each channel URL or node, opened when first used.
type mqttPool struct {
	o   CommanderOptions
	tls tlsDialer // makes a TLS connection of a TCP connection; tests bring their own roots

	mu     sync.Mutex // guards everything below, and users and used of a connection
	conns  map[mqttKey]*mqttConn
	last   uint64 // number of the last connection
	closed bool
	wg     sync.WaitGroup // closing connections
}

// mqttKey tells connections apart. Whatever the operator changes in it makes a new connection; the old one goes idle.
type mqttKey struct {
	cluster    fsm.ClusterID
	node       fsm.NodeID // 0 for a channel URL
	address    string
	serverName string // for TLS, empty for plain TCP
	credential string // the reference
}

// mqttConn is a place for one session, which is opened again whenever it was lost.
type mqttConn struct {
	key      mqttKey
	clientID string
	users    int       // commands using it
	used     time.Time // last time users fell to 0

	gate    chan struct{} // holds one token; whoever took it may touch session
	session mqttSession
}

// mqttSession is an established MQTT connection.
type mqttSession interface {
	// publish sends the message and waits for its PUBACK. A session that has become doubtful wants to be replaced.
	publish(ctx context.Context, m message) (r Result, doubtful bool)
	lost() <-chan struct{} // closed when the connection has ended
	close()                // sends DISCONNECT if it can, and waits for the session's goroutines
}

func newMQTTPool(o CommanderOptions) *mqttPool {
	return &mqttPool{o: o, tls: systemTLS, conns: map[mqttKey]*mqttConn{}}
}

// publish sends the message over the target's connection.
func (p *mqttPool) publish(ctx context.Context, t Target, m message) Result {
	key, why := mqttChannel(t)
	if why != "" {
		return rejected(why)
	}
	conn := p.take(key)
	if conn == nil {
		return rejected("the gateway is stopping")
	}
	defer p.release(conn)
	s, r := p.open(ctx, conn)
	if s == nil {
		return r
	}
	r, doubtful := s.publish(ctx, m)
	if doubtful {
		s.close() // its lost channel closes, and the next command opens a new one
	}
	return r
}

// mqttChannel finds where the channel of the target is.
func mqttChannel(t Target) (key mqttKey, why string) {
	ch := &t.Cluster.Spec.Channel
	key = mqttKey{cluster: t.Cluster.ID, credential: ch.Credential}
	if ch.URL == "" {
		if t.Node.ID == 0 || t.Node.Address == "" {
			return key, "the device has no node yet that the command could be handed to"
		}
		key.node, key.address = t.Node.ID, t.Node.Address
		return key, ""
	}
	u, err := url.Parse(ch.URL)
	if err != nil || u.Hostname() == "" {
		return key, "the channel's URL is not usable"
	}
	port := "1883"
	if u.Scheme == "mqtts" {
		key.serverName, port = u.Hostname(), "8883"
	}
	if u.Port() != "" {
		port = u.Port()
	}
	key.address = net.JoinHostPort(u.Hostname(), port)
	return key, ""
}

// take returns the connection for the key with one more user, nil when the pool is closed.
func (p *mqttPool) take(key mqttKey) *mqttConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	c := p.conns[key]
	if c == nil {
		p.last++
		c = &mqttConn{key: key, clientID: fmt.Sprintf("turnout-%.8s-%d", p.o.Gateway(), p.last), gate: make(chan struct{}, 1)}
		c.gate <- struct{}{}
		p.conns[key] = c
	}
	c.users++
	return c
}

func (p *mqttPool) release(c *mqttConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.users--
	c.used = p.o.Now()
}

// open returns the connection's session, made anew if there is none or it was lost. Commands that come meanwhile wait for it.
func (p *mqttPool) open(ctx context.Context, c *mqttConn) (mqttSession, Result) {
	select {
	case <-c.gate:
	case <-ctx.Done():
		return nil, rejected("channel unreachable")
	}
	defer func() { c.gate <- struct{}{} }()
	if c.session != nil {
		select {
		case <-c.session.lost():
			c.session.close()
			c.session = nil
		default:
			return c.session, Result{}
		}
	}
	s, r := p.connect(ctx, c)
	c.session = s
	return s, r
}

// connect opens a session: MQTT 5.0 first, 3.1.1 when the broker does not take that version. Nothing was handed over when it fails.
func (p *mqttPool) connect(ctx context.Context, c *mqttConn) (mqttSession, Result) {
	cred, err := readCredential(c.key.credential)
	if err != nil {
		return nil, rejected("the channel's credential is not usable: " + err.Error())
	}
	s, r, otherVersion := p.attempt(ctx, c, cred, connect5)
	if otherVersion {
		s, r, _ = p.attempt(ctx, c, cred, connect3)
	}
	if s == nil {
		p.o.Logger.Warn("command channel: no MQTT session", "address", c.key.address, "detail", r.Detail)
		return nil, r
	}
	return s, r
}

// connector makes a session on a fresh connection, which it owns from then on. otherVersion says that the broker may do better with
// another protocol version.
type connector func(ctx context.Context, conn net.Conn, clientID string, cred credential) (s mqttSession, r Result, otherVersion bool)

func (p *mqttPool) attempt(ctx context.Context, c *mqttConn, cred credential, f connector) (mqttSession, Result, bool) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := p.o.Guard.DialContext(ctx, "tcp", c.key.address)
	if err != nil {
		return nil, unreachable(err), false
	}
	if c.key.serverName != "" {
		secured, err := p.tls(ctx, conn, c.key.serverName)
		if err != nil {
			_ = conn.Close()
			return nil, rejected("channel unreachable: no TLS connection"), false
		}
		conn = secured
	}
	return f(ctx, &boundedConn{Conn: conn}, c.clientID, cred)
}

// sweep closes the connections that nobody uses and nobody will need.
func (p *mqttPool) sweep(topo *fsm.Topology) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.o.Now()
	for key, c := range p.conns {
		if c.users > 0 || needed(topo, key) && now.Sub(c.used) < mqttIdle {
			continue
		}
		delete(p.conns, key)
		p.shut(c)
	}
}

// needed reports whether the tables still name what the connection leads to.
func needed(topo *fsm.Topology, key mqttKey) bool {
	cluster := topo.ClusterByID(key.cluster)
	if cluster == nil || key.node == 0 {
		return cluster != nil
	}
	n, ok := cluster.Node(key.node)
	return ok && n.Address == key.address
}

// shut closes a connection that is out of the map and has no users. The caller holds mu.
func (p *mqttPool) shut(c *mqttConn) {
	p.wg.Go(func() {
		if c.session != nil {
			c.session.close()
		}
	})
}

// close closes every connection and waits for that. No command may be on its way.
func (p *mqttPool) close() {
	p.mu.Lock()
	p.closed = true
	for key, c := range p.conns {
		delete(p.conns, key)
		p.shut(c)
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// mqttRefusal puts a refusing CONNACK into words; credentials tells that of a wrong user or password.
func mqttRefusal(credentials bool) Result {
	if credentials {
		return rejected("channel credentials refused")
	}
	return rejected("channel unreachable: the broker refuses the connection")
}
