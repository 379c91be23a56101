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

// brokenLinger is the most that is left to one side after the other broke: time to take what came before, and to close.
const brokenLinger = 5 * time.Second

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

	mu       sync.Mutex // guards the three below
	sessions map[*session]struct{}
	sweeper  *time.Timer // runs while there are sessions
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
	engine  *Copying
	ends    [2]*end // device, upstream: the source of each direction
	done    func(Stats)
	bytes   [2]atomic.Uint64
	writing [2]atomic.Bool
	stuck   [2]uint64 // of sweep: bytes at the last one, and 1, if a write was under way; else 0
	cause   atomic.Uint32
	pumps   atomic.Int32
	abort   sync.Once

	mu     sync.Mutex // guards the two below
	linger *time.Timer
	until  time.Time // when linger fires
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
	if e.sweeper == nil {
		e.sweeper = time.AfterFunc(e.opts.Linger, e.sweep)
	}
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
	if e.sweeper != nil {
		e.sweeper.Stop()
	}
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

// pump carries one direction until its source ends or breaks. What was read goes out before the end is passed on, also behind a reset:
// what the source's peer saw acknowledged must not be dropped on the way, least of all a DISCONNECT. Once the destination has broken, the source
// is read on to no end but that its other direction, which may still owe it something, can be closed in order.
func (s *session) pump(direction int, from, to *end, owed []byte) {
	defer s.leave()
	ended, fromReset, toReset := CauseDeviceEnd, CauseDeviceReset, CauseUpstreamReset
	if direction == toDevice {
		ended, fromReset, toReset = CauseUpstreamEnd, CauseUpstreamReset, CauseDeviceReset
	}
	whole := true
	carry := func(b []byte) {
		if whole && !s.write(direction, to, b) {
			whole = false
			s.expire(toReset, brokenLinger)
		}
	}
	if len(owed) > 0 {
		carry(owed)
	}
	for {
		buf, n, err := from.read()
		if n > 0 {
			carry((*buf)[:n])
			s.engine.buffers.Put(buf)
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // the second: TLS without a close_notify
			s.expire(ended, s.engine.opts.Linger)
		default:
			s.expire(fromReset, brokenLinger)
		}
		CloseWrite(to.conn)
		return
	}
}

func (s *session) write(direction int, to *end, b []byte) bool {
	s.writing[direction].Store(true)
	n, err := to.conn.Write(b)
	s.writing[direction].Store(false)
	s.bytes[direction].Add(uint64(n))
	s.engine.totals[direction].Add(uint64(n))
	return err == nil
}

// expire bounds what is left of a session after one direction has ended. The shortest of several bounds counts.
func (s *session) expire(c Cause, after time.Duration) {
	s.cause.CompareAndSwap(0, uint32(c))
	after = min(after, s.engine.opts.Linger)
	until := time.Now().Add(after)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.linger == nil:
		s.linger = time.AfterFunc(after, func() { s.Close(c) })
	case until.Before(s.until):
		s.linger.Reset(after)
	default:
		return
	}
	s.until = until
}

// sweep ends the sessions in which one side is gone while the other takes nothing. There the pump that would find the end is stuck in its
// write, for as long as the other side likes.
func (e *Copying) sweep() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.sessions) == 0 {
		e.sweeper = nil
		return
	}
	for s := range e.sessions {
		for direction := range s.stuck {
			if c := s.heldUp(direction); c != 0 {
				s.Close(c) // does not wait: the connection under the write is closed without a word
			}
		}
	}
	e.sweeper.Reset(e.opts.Linger)
}

// heldUp tells what became of the source of a direction whose write has not moved since the last sweep; 0 means that nothing did. It is
// called by sweep alone.
func (s *session) heldUp(direction int) Cause {
	before := s.stuck[direction]
	s.stuck[direction] = 0
	if !s.writing[direction].Load() {
		return 0
	}
	s.stuck[direction] = s.bytes[direction].Load() + 1
	if s.stuck[direction] != before {
		return 0
	}
	ended, broken := gone(s.ends[direction].conn)
	switch {
	case broken && direction == fromDevice:
		return CauseDeviceReset
	case broken:
		return CauseUpstreamReset
	case ended && direction == fromDevice:
		return CauseDeviceEnd
	case ended:
		return CauseUpstreamEnd
	}
	return 0
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
