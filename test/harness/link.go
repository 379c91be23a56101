package harness

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// LinkMode says what a Link lets through.
type LinkMode int

const (
	LinkPass          LinkMode = iota
	LinkCut                    // existing connections are closed, new ones refused
	LinkBlackhole              // connections are accepted and kept; no byte, no end and no new dial gets through
	LinkBlackholeUp            // as LinkBlackhole, but only from client to target
	LinkBlackholeDown          // as LinkBlackhole, but only from target to client
)

// LinkBehaviour is everything that can be wrong with a Link at a time. The zero value is a good link.
type LinkBehaviour struct {
	Mode  LinkMode
	Delay time.Duration // each byte arrives that much later, in both directions

	Slice      int           // deliver at most that many bytes in one write; 0 is no limit
	SlicePause time.Duration // pause after each slice

	// A connection is closed once that many bytes passed in one direction since it was accepted, and not one byte
	// more passes. 0 is no limit.
	CutAfterUp   int64 // client → target
	CutAfterDown int64 // target → client
}

// LinkOptions describe a link.
type LinkOptions struct {
	Target  string       // host:port to dial for every connection; required
	Address string       // IPv4 host:port to listen on; "" is a free port of 127.0.0.1
	Logger  *slog.Logger // nil discards
}

// Link is a TCP path from its own address to a target that breaks on demand. Bytes held back by a blackhole are not
// lost: like on a real network they arrive when the link heals, unless an end gave up before.
type Link struct {
	target string
	log    *slog.Logger
	port   *heldPort

	life sync.Mutex // serialises Set and Close
	wg   sync.WaitGroup

	mu        sync.Mutex
	behaviour LinkBehaviour
	changed   chan struct{} // closed at every change of behaviour
	listener  net.Listener  // nil while cut or closed
	conns     map[*linkConn]struct{}
	accepted  int
	closed    bool
}

const linkDialTimeout = 10 * time.Second

// NewLink opens a link that passes everything.
func NewLink(o LinkOptions) (*Link, error) {
	if _, _, err := net.SplitHostPort(o.Target); err != nil {
		return nil, fmt.Errorf("parse target: %w", err)
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	port, err := holdPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("open link: %w", err)
	}
	l := &Link{
		target: o.Target, log: log.With("link", port.address, "target", o.Target), port: port,
		changed: make(chan struct{}), conns: make(map[*linkConn]struct{}),
	}
	if err := l.open(); err != nil {
		port.release()
		return nil, fmt.Errorf("open link: %w", err)
	}
	return l, nil
}

// Address returns the host:port that clients dial. It stays the same for the link's life.
func (l *Link) Address() string { return l.port.address }

// Connections returns how many connections the link holds now.
func (l *Link) Connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// Accepted returns how many connections the link ever accepted.
func (l *Link) Accepted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepted
}

// Set changes the behaviour for live and future connections at once. The error comes from listening again after a
// cut.
func (l *Link) Set(b LinkBehaviour) error {
	l.life.Lock()
	defer l.life.Unlock()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return errors.New("set link: it is closed")
	}
	l.behaviour = b
	close(l.changed)
	l.changed = make(chan struct{})
	listening := l.listener != nil
	l.mu.Unlock()
	switch {
	case b.Mode == LinkCut:
		l.cut()
	case !listening:
		if err := l.open(); err != nil {
			return fmt.Errorf("set link: %w", err)
		}
	}
	return nil
}

// open starts listening.
func (l *Link) open() error {
	ln, err := l.port.listen()
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.listener = ln
	l.mu.Unlock()
	l.wg.Go(func() { l.acceptLoop(ln) })
	return nil
}

// cut closes the listener and every connection.
func (l *Link) cut() {
	l.mu.Lock()
	ln := l.listener
	l.listener = nil
	conns := make([]*linkConn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	if ln != nil {
		_ = ln.Close()
	}
	for _, c := range conns {
		c.close()
	}
}

// Close cuts the link for good, waits for its goroutines and gives the port back. It is idempotent.
func (l *Link) Close() error {
	l.life.Lock()
	defer l.life.Unlock()
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cut()
	l.wg.Wait()
	l.port.release()
	return nil
}

func (l *Link) acceptLoop(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors: a moment later there may be some
			time.Sleep(10 * time.Millisecond)
			continue
		}
		c := &linkConn{link: l, client: conn, gone: make(chan struct{})}
		if !l.track(ln, c) {
			_ = conn.Close()
			continue
		}
		l.wg.Go(c.serve)
	}
}

// track takes c in, unless its listener is no longer the link's.
func (l *Link) track(ln net.Listener, c *linkConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.listener != ln {
		return false
	}
	l.conns[c] = struct{}{}
	l.accepted++
	return true
}

func (l *Link) forget(c *linkConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

func (l *Link) state() (LinkBehaviour, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.behaviour, l.changed
}
