package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// bufferBytes is the size of one transfer, and the most that a session holds in each direction.
const bufferBytes = 16 << 10

// Options of an engine. The zero value of a field means its default.
type Options struct {
	// Linger is how long one direction may go on after the other has ended. Default 30 s.
	Linger time.Duration
	// KeepAlive is set on both sockets. Default: first probe after 60 s of silence, then every 15 s, 4 without an answer
	// end the connection.
	KeepAlive net.KeepAliveConfig
}

func (o Options) withDefaults() Options {
	if o.Linger == 0 {
		o.Linger = 30 * time.Second
	}
	if o.KeepAlive == (net.KeepAliveConfig{}) {
		o.KeepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}
	}
	return o
}

// Copying is the engine with two goroutines for each session.
type Copying struct {
	opts    Options
	buffers sync.Pool // of *[]byte, bufferBytes long
	totals  [2]atomic.Uint64
	running sync.WaitGroup // one for each session

	mu       sync.Mutex // guards the two below
	sessions map[*session]struct{}
	closed   bool
}

// NewCopying returns a running engine.
func NewCopying(o Options) *Copying {
	e := &Copying{opts: o.withDefaults(), sessions: map[*session]struct{}{}}
	e.buffers.New = func() any {
		b := make([]byte, bufferBytes)
		return &b
	}
	return e
}

// The two directions, as indexes.
const (
	fromDevice = 0
	toDevice   = 1
)

// session is one pair. Its two pumps end it together: the last one to leave closes both connections.
type session struct {
	engine *Copying
	ends   [2]*end // device, upstream
	done   func(Stats)
	bytes  [2]atomic.Uint64
	cause  atomic.Uint32
	pumps  atomic.Int32
	abort  sync.Once

	mu     sync.Mutex // guards linger
	linger *time.Timer
}

// Start implements Engine.
func (e *Copying) Start(p Pair) Session {
	s := &session{engine: e, done: p.Done, ends: [2]*end{newEnd(e, p.Device), newEnd(e, p.Upstream)}}
	s.pumps.Store(2)
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		s.Close(CauseShutdown)
		s.done(Stats{Cause: CauseShutdown})
		return s
	}
	e.sessions[s] = struct{}{}
	e.running.Add(1)
	e.mu.Unlock()
	for _, end := range s.ends {
		if t := TCP(end.conn); t != nil {
			_ = t.SetKeepAliveConfig(e.opts.KeepAlive) // fails on a dead socket only, which the pumps find out
		}
	}
	go s.pump(fromDevice, s.ends[0], s.ends[1], p.ToUpstream)
	go s.pump(toDevice, s.ends[1], s.ends[0], p.ToDevice)
	return s
}

// Totals implements Engine.
func (e *Copying) Totals() (from, to uint64) {
	return e.totals[fromDevice].Load(), e.totals[toDevice].Load()
}

// Close implements Engine.
func (e *Copying) Close() {
	e.mu.Lock()
	e.closed = true
	for s := range e.sessions {
		s.Close(CauseShutdown)
	}
	e.mu.Unlock()
	e.running.Wait()
}

// Close implements Session.
func (s *session) Close(c Cause) {
	s.cause.CompareAndSwap(0, uint32(c))
	s.abort.Do(func() {
		for _, end := range s.ends {
			_ = end.conn.Close()
		}
	})
}

// reset ends the session after a side broke: neither peer may take it for an end in order.
func (s *session) reset(c Cause) {
	s.cause.CompareAndSwap(0, uint32(c))
	s.abort.Do(func() {
		for _, end := range s.ends {
			Reset(end.conn)
		}
	})
}

// pump carries one direction until its source ends or either side breaks.
func (s *session) pump(direction int, from, to *end, owed []byte) {
	defer s.leave()
	ended, fromReset, toReset := CauseDeviceEnd, CauseDeviceReset, CauseUpstreamReset
	if direction == toDevice {
		ended, fromReset, toReset = CauseUpstreamEnd, CauseUpstreamReset, CauseDeviceReset
	}
	if len(owed) > 0 && !s.write(direction, to, owed) {
		s.reset(toReset)
		return
	}
	for {
		buf, n, err := from.read()
		if n > 0 {
			ok := s.write(direction, to, (*buf)[:n])
			s.engine.buffers.Put(buf)
			if !ok {
				s.reset(toReset)
				return
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // the second: TLS without a close_notify
			s.cause.CompareAndSwap(0, uint32(ended))
			CloseWrite(to.conn)
			s.startLinger()
			return
		default:
			s.reset(fromReset)
			return
		}
	}
}

func (s *session) write(direction int, to *end, b []byte) bool {
	n, err := to.conn.Write(b)
	s.bytes[direction].Add(uint64(n))
	s.engine.totals[direction].Add(uint64(n))
	return err == nil
}

// startLinger bounds what is left of a session with one direction ended.
func (s *session) startLinger() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.linger == nil {
		s.linger = time.AfterFunc(s.engine.opts.Linger, func() { s.Close(CauseShutdown) }) // the cause is set already
	}
}

// leave is the end of a pump; the second one accounts for the session.
func (s *session) leave() {
	if s.pumps.Add(-1) > 0 {
		return
	}
	s.mu.Lock()
	if s.linger != nil {
		s.linger.Stop()
	}
	s.mu.Unlock()
	s.Close(CauseShutdown) // both ended in order: the cause is set, the sockets are still open
	e := s.engine
	e.mu.Lock()
	delete(e.sessions, s)
	e.mu.Unlock()
	s.done(Stats{FromDevice: s.bytes[fromDevice].Load(), ToDevice: s.bytes[toDevice].Load(), Cause: Cause(s.cause.Load())})
	e.running.Done()
}

// end is one side of a session. Only one pump reads it.
type end struct {
	engine *Copying
	conn   net.Conn
	raw    syscall.RawConn // nil unless conn is a bare TCP connection

	// Set by ready, for read.
	ready func(fd uintptr) bool
	buf   *[]byte
	n     int
	err   error
}

func newEnd(e *Copying, c net.Conn) *end {
	x := &end{engine: e, conn: c}
	if t, ok := c.(*net.TCPConn); ok {
		if raw, err := t.SyscallConn(); err == nil {
			x.raw, x.ready = raw, x.readReady
		}
	}
	return x
}

// read waits for bytes. It takes a buffer only when there are some (a wrapped connection has to be given one to wait with) and
// returns nil for it when n is 0.
func (x *end) read() (buf *[]byte, n int, err error) {
	if x.raw == nil {
		buf = x.engine.buffers.Get().(*[]byte)
		n, err = x.conn.Read(*buf)
		if n == 0 {
			x.engine.buffers.Put(buf)
			buf = nil
		}
		return buf, n, err
	}
	if err := x.raw.Read(x.ready); err != nil {
		return nil, 0, err
	}
	buf, x.buf = x.buf, nil
	return buf, x.n, x.err
}

// readReady reads what the socket has. False makes the runtime wait until the socket is readable.
func (x *end) readReady(fd uintptr) bool {
	buf := x.engine.buffers.Get().(*[]byte)
	n, err := syscall.Read(int(fd), *buf)
	for err == syscall.EINTR {
		n, err = syscall.Read(int(fd), *buf)
	}
	if n > 0 {
		x.buf, x.n, x.err = buf, n, nil
		return true
	}
	x.engine.buffers.Put(buf)
	if err == syscall.EAGAIN {
		return false
	}
	x.n, x.err = 0, err
	if err == nil {
		x.err = io.EOF
	}
	return true
}
