package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of the peer port. A cluster of 50 gateways needs a few hundred connections.
const (
	maxHandshakes  = 64   // connections that have not introduced themselves
	maxConnections = 2048 // all
)

// port is the listener of the peer port. It owns a connection until the handshake is done, then hands it to Raft's or
// the calls' listener, which closes it; stop closes whatever is left and waits for all of it.
type port struct {
	listener net.Listener
	tls      *tls.Config // nil: plain
	timeout  time.Duration
	admit    func(hello) refusal
	refused  func(refusal)
	logger   *slog.Logger
	repeats  repeats

	rpc  *handover
	raft atomic.Pointer[handover] // nil while this gateway is not a member

	handshaking chan struct{} // one slot for each

	mu     sync.Mutex // guards closed, conns, and the Conn of a peerConn until it is handed over
	closed bool
	conns  map[*peerConn]struct{}
	done   sync.WaitGroup // the accept loop and every connection until its owner closed it
}

// peerConn is a connection after the handshake. Its owner must close it.
type peerConn struct {
	net.Conn
	hello hello
	port  *port
	once  sync.Once
}

// Close implements net.Conn.
func (c *peerConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { c.port.forget(c) })
	return err
}

func listenPort(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive, Control: socketOptions}
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen peer: %w", err)
	}
	return l, nil
}

// start begins to accept. The fields must be set.
func (p *port) start() {
	p.handshaking = make(chan struct{}, maxHandshakes)
	p.conns = map[*peerConn]struct{}{}
	p.rpc = newHandover(p.listener.Addr())
	p.done.Add(1)
	go p.acceptLoop()
}

// stop closes the listener and all connections, and waits until their owners have let go of them.
func (p *port) stop() {
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		c.Conn.Close() // the owner's Close comes when its read fails
	}
	p.mu.Unlock()
	p.listener.Close()
	p.rpc.Close()
	if l := p.raft.Load(); l != nil {
		l.Close()
	}
	p.done.Wait()
}

func (p *port) acceptLoop() {
	defer p.done.Done()
	for {
		conn, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.logger.Warn("peer port cannot accept", "error", err)
			time.Sleep(50 * time.Millisecond) // out of file descriptors, as a rule
			continue
		}
		select {
		case p.handshaking <- struct{}{}:
		default:
			p.refused(refusedBusy)
			conn.Close()
			continue
		}
		c := &peerConn{Conn: conn, port: p}
		if !p.track(c) {
			<-p.handshaking
			conn.Close()
			continue
		}
		go p.introduce(c)
	}
}

// track makes stop close the connection and wait for it.
func (p *port) track(c *peerConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.conns) >= maxConnections {
		if !p.closed {
			p.refused(refusedBusy)
		}
		return false
	}
	p.conns[c] = struct{}{}
	p.done.Add(1)
	return true
}

func (p *port) forget(c *peerConn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	p.done.Done()
}

// introduce makes the handshake of an accepted connection and hands it over, or closes it.
func (p *port) introduce(c *peerConn) {
	deadline := time.Now().Add(p.timeout)
	c.Conn.SetDeadline(deadline)
	l, reason := p.handshake(c, deadline)
	<-p.handshaking
	if reason != accepted {
		p.refused(reason)
		if !p.repeats.quiet(reason.String()) {
			p.logger.Info("peer connection refused", "reason", reason.String(), "remote", c.RemoteAddr().String())
		}
		c.Close()
		return
	}
	c.Conn.SetDeadline(time.Time{})
	if !l.give(c) {
		c.Close()
	}
}

func (p *port) handshake(c *peerConn, deadline time.Time) (*handover, refusal) {
	if p.tls != nil {
		tc := tls.Server(c.Conn, p.tls)
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		err := tc.HandshakeContext(ctx)
		cancel()
		if err != nil {
			p.logger.Debug("peer TLS handshake", "error", err)
			return nil, orTimeout(err, refusedTLS)
		}
		p.mu.Lock()
		c.Conn = tc // under the lock: stop reads the field
		p.mu.Unlock()
	}
	h, err := readHello(c.Conn)
	var refused *refusedError
	switch {
	case errors.As(err, &refused):
		writeAnswer(c.Conn, refused.reason)
		return nil, refused.reason
	case err != nil:
		return nil, orTimeout(err, refusedMalformed)
	}
	l := p.rpc
	reason := p.admit(h)
	if h.purpose == purposeRaft && reason == accepted {
		if l = p.raft.Load(); l == nil {
			reason = refusedNotAdmitted
		}
	}
	if err := writeAnswer(c.Conn, reason); err != nil && reason == accepted {
		return nil, orTimeout(err, refusedMalformed)
	}
	c.hello = h
	return l, reason
}

// orTimeout tells silence from everything else that ends a handshake.
func orTimeout(err error, otherwise refusal) refusal {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return refusedTimeout
	}
	return otherwise
}

// handover is a net.Listener that accepts the connections given to it.
type handover struct {
	address net.Addr
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newHandover(address net.Addr) *handover {
	return &handover{address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// give waits until the connection is accepted. It returns false when the listener is closed; the caller keeps the connection.
func (l *handover) give(c net.Conn) bool {
	select {
	case l.conns <- c:
		return true
	case <-l.closed:
		return false
	}
}

// Accept implements net.Listener.
func (l *handover) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *handover) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *handover) Addr() net.Addr { return l.address }
