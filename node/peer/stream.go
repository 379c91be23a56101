package peer

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// stream is the raft.StreamLayer over the peer port. The transport above it is Raft's own, so pre-vote stays on. It keeps track of the
// connections that it dialed: Raft closes only those that are not in use.
type stream struct {
	*handover
	dialer *dialer
	ctx    context.Context
	end    context.CancelFunc

	mu    sync.Mutex
	conns map[*streamConn]struct{} // nil after cut
}

type streamConn struct {
	net.Conn
	stream *stream
}

func newStream(ctx context.Context, l *handover, d *dialer) *stream {
	s := &stream{handover: l, dialer: d, conns: map[*streamConn]struct{}{}}
	s.ctx, s.end = context.WithCancel(ctx)
	return s
}

// Dial implements raft.StreamLayer. Raft owns the connection.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	to, err := parseTarget(string(address))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	conn, err := s.dialer.dial(ctx, to, purposeRaft)
	if err != nil {
		return nil, err
	}
	c := &streamConn{Conn: conn, stream: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		conn.Close()
		return nil, net.ErrClosed
	}
	s.conns[c] = struct{}{}
	return c, nil
}

// Close implements net.Conn.
func (c *streamConn) Close() error {
	c.stream.mu.Lock()
	delete(c.stream.conns, c)
	c.stream.mu.Unlock()
	return c.Conn.Close()
}

// cut ends dials and closes every dialed connection, whoever is using it.
func (s *stream) cut() {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Conn.Close()
	}
	s.conns = nil
}

// raftAddress is a net.Addr of the form "<id>@<host:port>".
type raftAddress string

// Network implements net.Addr.
func (raftAddress) Network() string { return "tcp" }

// String implements net.Addr.
func (a raftAddress) String() string { return string(a) }
