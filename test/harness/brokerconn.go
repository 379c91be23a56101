package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"
)

const (
	// maxPacketBytes bounds one MQTT packet, as EMQX does by default (1 MiB).
	maxPacketBytes = 1 << 20
	// connectTimeout bounds the time from accept to a complete CONNECT.
	connectTimeout = 30 * time.Second
	// lingerTime and lingerBytes bound how long a refused connection is drained so that its CONNACK is not lost.
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// brokerListener hands accepted connections to the MQTT server and, unlike the server's own listeners, can close all
// of them without a farewell and wait for their goroutines.
type brokerListener struct {
	b       *Broker
	run     *brokerRun
	ln      net.Listener
	closing chan struct{}

	mu     sync.Mutex
	closed bool
	conns  map[*brokerConn]struct{}
	wg     sync.WaitGroup
}

func newBrokerListener(b *Broker, run *brokerRun, ln net.Listener) *brokerListener {
	return &brokerListener{b: b, run: run, ln: ln, closing: make(chan struct{}), conns: make(map[*brokerConn]struct{})}
}

func (l *brokerListener) Init(*slog.Logger) error { return nil }
func (l *brokerListener) ID() string              { return "tcp" }
func (l *brokerListener) Address() string         { return l.ln.Addr().String() }
func (l *brokerListener) Protocol() string        { return "tcp" }

// Serve accepts until the listener is closed.
func (l *brokerListener) Serve(establish listeners.EstablishFn) {
	if !l.enter(nil) {
		return
	}
	defer l.leave(nil)
	for {
		conn, err := l.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors: wait for some to be freed
			select {
			case <-l.closing:
				return
			case <-time.After(10 * time.Millisecond):
				continue
			}
		}
		c := newBrokerConn(conn, l.closing)
		if !l.enter(c) {
			_ = conn.Close()
			return
		}
		go l.serveConn(establish, c)
	}
}

// enter registers a goroutine, and its connection if it has one; it says no once the listener is closed.
func (l *brokerListener) enter(c *brokerConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if c != nil {
		l.conns[c] = struct{}{}
	}
	l.wg.Add(1)
	return true
}

func (l *brokerListener) leave(c *brokerConn) {
	l.mu.Lock()
	if c != nil {
		delete(l.conns, c)
	}
	l.mu.Unlock()
	l.wg.Done()
}

// serveConn owns c until the MQTT server is done with it.
func (l *brokerListener) serveConn(establish listeners.EstablishFn, c *brokerConn) {
	defer l.leave(c)
	defer c.Close()
	if hung := l.b.hanging(); hung != nil {
		select {
		case <-hung:
		case <-l.closing:
		}
		close(c.done)
		return
	}
	_ = c.SetDeadline(time.Now().Add(connectTimeout)) // the MQTT server replaces it after CONNECT
	if err := establish(l.ID(), c); err != nil {
		l.b.log.Debug("connection ended", "remote", c.RemoteAddr().String(), "reason", err.Error())
	}
	l.b.connEnded(l.run, c)
	c.endClaim()
	close(c.done)
}

// Close refuses new connections, closes all others abruptly and waits for their goroutines. The server's own way of
// closing clients, which says good-bye, is not used.
func (l *brokerListener) Close(listeners.CloseFn) {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	conns := make([]*brokerConn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	if first {
		close(l.closing)
		_ = l.ln.Close()
	}
	for _, c := range conns {
		_ = c.Close()
	}
	l.wg.Wait()
}

// brokerConn is one accepted connection. It hashes what passes and keeps a hash of the CONNECT packet.
type brokerConn struct {
	net.Conn
	closing <-chan struct{} // closed when the broker stops
	done    chan struct{}   // closed when the connection's goroutine has cleaned up

	// Touched only by the connection's own goroutine.
	session *session // set once the broker accepted the CONNECT
	expired bool     // the session ended with the connection

	claimOnce sync.Once
	claim     func() // releases the client identifier, see domain.claim

	mu          sync.Mutex
	in, out     hash.Hash
	nIn, nOut   int64
	head        []byte // bytes of the first packet, until it is complete
	headDone    bool
	connectHash string
}

func newBrokerConn(c net.Conn, closing <-chan struct{}) *brokerConn {
	return &brokerConn{Conn: c, closing: closing, done: make(chan struct{}), in: sha256.New(), out: sha256.New()}
}

func (c *brokerConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.mu.Lock()
		c.in.Write(p[:n])
		c.nIn += int64(n)
		c.noteHead(p[:n])
		c.mu.Unlock()
	}
	return n, err
}

func (c *brokerConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.mu.Lock()
		c.out.Write(p[:n])
		c.nOut += int64(n)
		c.mu.Unlock()
	}
	return n, err
}

// noteHead collects the first packet and hashes it once it is complete. Called under mu.
func (c *brokerConn) noteHead(p []byte) {
	if c.headDone {
		return
	}
	c.head = append(c.head, p...)
	total, ok := packetLength(c.head)
	switch {
	case ok && len(c.head) >= total:
		sum := sha256.Sum256(c.head[:total])
		c.connectHash = hex.EncodeToString(sum[:])
		fallthrough
	case len(c.head) > maxPacketBytes+5:
		c.head, c.headDone = nil, true
	}
}

// packetLength returns the total length of the packet that p begins with, once its Remaining Length (MQTT 5.0 §2.1.4)
// is complete.
func packetLength(p []byte) (total int, ok bool) {
	length := 0
	for i := 1; i < len(p) && i <= 4; i++ {
		length |= int(p[i]&0x7F) << (7 * (i - 1))
		if p[i]&0x80 == 0 {
			return 1 + i + length, true
		}
	}
	return 0, false
}

// connectSHA256 returns the hex hash of the CONNECT packet, "" while it is incomplete.
func (c *brokerConn) connectSHA256() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connectHash
}

// traffic fills the byte counts and hashes of r.
func (c *brokerConn) traffic(r *Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.BytesIn, r.BytesOut = c.nIn, c.nOut
	r.SHA256In = hex.EncodeToString(c.in.Sum(nil))
	r.SHA256Out = hex.EncodeToString(c.out.Sum(nil))
}

// endClaim releases the client identifier for the next connection of the same name. It is idempotent.
func (c *brokerConn) endClaim() {
	c.claimOnce.Do(func() {
		if c.claim != nil {
			c.claim()
		}
	})
}

// linger shuts the write side and drains the peer for a moment: closing a socket with unread bytes makes the kernel
// send RST, and the peer might lose the CONNACK.
func (c *brokerConn) linger() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, io.LimitReader(c.Conn, lingerBytes))
}
