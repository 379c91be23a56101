package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"turnout/fsm"
	"turnout/proxy/mqtt"
	"turnout/proxy/relay"
)

const (
	// maxAnswerBytes bounds a CONNACK or AUTH of a broker.
	maxAnswerBytes = 64 << 10
	// closeGrace and closeBytes bound how long a connection that is being closed is still read, so that the last packet is not
	// lost to a reset (facts: a close with unread bytes resets).
	closeGrace = time.Second
	closeBytes = 256 << 10
)

// upstream is a connection to a broker node during one attempt.
type upstream struct {
	conn net.Conn
	node *fsm.Node
	// answer is what the node sent, from a packet boundary on; its first packet is first bytes long.
	answer []byte
	first  int
	// unread is set when the answer is a CONNACK that can't be read: the node may think that the device is connected.
	unread bool
}

// packet is the first packet of the answer.
func (u *upstream) packet() []byte { return u.answer[:u.first] }

// errBadAnswer is an answer that is no MQTT.
var errBadAnswer = errors.New("answer is not MQTT")

// readPacket reads until the answer begins with a complete packet.
func (u *upstream) readPacket() error {
	for {
		total, ok, err := mqtt.PacketLength(u.answer, maxAnswerBytes)
		if err != nil {
			return fmt.Errorf("%w: %w", errBadAnswer, err)
		}
		if ok && len(u.answer) >= total {
			u.first = total
			return nil
		}
		if len(u.answer) == cap(u.answer) {
			u.answer = append(u.answer, 0)[:len(u.answer)] // room; grows as bytes arrive, never by what was announced
		}
		n, err := u.conn.Read(u.answer[len(u.answer):cap(u.answer)])
		u.answer = u.answer[:len(u.answer)+n]
		if err != nil && n == 0 {
			return err
		}
	}
}

// try hands the CONNECT to one node and waits for its first packet. For attemptAccepted, attemptRefused and attemptCannotServe
// the upstream holds the CONNACK; for "" it holds an AUTH. With every other outcome, and with attemptCannotServe, the
// connection is closed already.
func (s *session) try(ctx context.Context, node *fsm.Node, buf []byte) (u *upstream, outcome string) {
	limit := time.Now().Add(s.g.cfg.DialTimeout)
	cut := s.deadline.Before(limit)
	dial, cancel := context.WithDeadline(ctx, limit)
	conn, err := s.g.dialer.DialContext(dial, "tcp", node.Address)
	cancel()
	if err != nil {
		return nil, dialOutcome(ctx, err, cut)
	}
	u = &upstream{conn: conn, node: node, answer: buf[:0]}
	limit = time.Now().Add(s.g.cfg.ConnackTimeout)
	if cut = s.deadline.Before(limit); cut {
		limit = s.deadline
	}
	_ = conn.SetDeadline(limit)
	release := interrupt(ctx, conn)
	if _, err := conn.Write(s.packet); err != nil {
		release()
		_ = conn.Close() // the CONNECT is not complete there: no will to suppress
		return nil, attemptOutcome(ctx, err, cut)
	}
	err = u.readPacket()
	if !release() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		if outcome = s.judge(u); outcome != attemptBadAnswer {
			if outcome == attemptCannotServe {
				_ = conn.Close() // the node has refused: it keeps no session and no will
			}
			return u, outcome
		}
		err = errBadAnswer
	}
	s.g.abandon(conn)
	return nil, attemptOutcome(ctx, err, cut)
}

// interrupt wakes whoever waits for conn when ctx ends. release ends that, and is false when ctx was first; behind it the deadline of conn
// is the caller's alone: one set by the caller before an interrupt still under way would be lost, and with it the DISCONNECT.
func interrupt(ctx context.Context, conn net.Conn) (release func() bool) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetDeadline(longAgo)
	})
	return func() bool {
		if stop() {
			return true
		}
		<-done
		return false
	}
}

// dialOutcome names a failed dial. cut is that of attemptOutcome.
func dialOutcome(ctx context.Context, err error, cut bool) string {
	var timeout net.Error
	switch {
	case ctx.Err() != nil, cut && errors.As(err, &timeout) && timeout.Timeout():
		return attemptAbandoned
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM),
		errors.Is(err, syscall.EADDRNOTAVAIL):
		return attemptLocal
	}
	return attemptDial
}

// attemptOutcome names a failed attempt. cut tells that the node was given less than its time, so that the lack of an answer
// isn't held against it.
func attemptOutcome(ctx context.Context, err error, cut bool) string {
	switch timeout := errors.Is(err, os.ErrDeadlineExceeded); {
	case ctx.Err() != nil, timeout && cut:
		return attemptAbandoned
	case timeout:
		return attemptTimeout
	case errors.Is(err, errBadAnswer):
		return attemptBadAnswer
	}
	return attemptClosed
}

// judge reads the first packet of a node: "" for AUTH (5.0 §3.15), attemptBadAnswer for what may not come first.
func (s *session) judge(u *upstream) string {
	switch mqtt.TypeOf(u.answer[0]) {
	case mqtt.AUTH:
		if s.connect.Version == mqtt.V5 {
			return ""
		}
	case mqtt.CONNACK:
		c, err := mqtt.ParseConnack(u.packet(), s.connect.Version)
		switch {
		case err == nil && c.CannotServe():
			return attemptCannotServe
		case err == nil && c.Success():
			return attemptAccepted
		}
		u.unread = err != nil
		return attemptRefused // also what can't be read: the device may know better
	}
	return attemptBadAnswer
}

// report tells health and metrics how an attempt went.
func (s *session) report(node *fsm.Node, outcome string) {
	s.g.metrics.attempts.WithLabelValues(string(s.decision.Cluster.Name), outcome).Inc()
	switch outcome {
	case attemptDial:
		s.g.health.failed(node.ID)
	case attemptCannotServe, attemptTimeout:
		s.g.health.doubted(node.ID)
	case attemptAccepted, attemptRefused:
		s.g.health.succeeded(node.ID)
	default:
		// A close before CONNACK may be this device's own doing, and must not turn the others away; nor must what this gateway lacks.
		s.g.health.released(node.ID)
	}
}

// abandon gives up a connection whose node has a complete CONNECT, in a way that makes it publish no will: DISCONNECT (3.1.1
// §3.14.4, 5.0 §3.14.4), then the end of the stream. The rest happens beside: a late CONNACK must not meet a closed socket,
// because the reset would overtake the DISCONNECT.
func (g *Gateway) abandon(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(g.cfg.ConnackTimeout))
	if _, err := conn.Write(mqtt.ClientDisconnect(0)); err != nil {
		_ = conn.Close()
		return
	}
	relay.CloseWrite(conn)
	g.serving.Add(1)
	go g.drainAbandoned(conn)
}

// drainAbandoned also holds at shutdown, for closeGrace at most.
func (g *Gateway) drainAbandoned(conn net.Conn) {
	defer g.serving.Done()
	stop := context.AfterFunc(g.ctx, func() { _ = conn.SetDeadline(time.Now().Add(min(closeGrace, g.cfg.ConnackTimeout))) })
	defer stop()
	g.discard(conn)
	_ = conn.Close()
}

// discard reads until the end of the stream, the deadline, or closeBytes.
func (g *Gateway) discard(conn net.Conn) {
	buf := g.buffers.Get().(*[]byte)
	defer g.buffers.Put(buf)
	for total := 0; total < closeBytes; {
		n, err := conn.Read(*buf)
		if total += n; err != nil {
			return
		}
	}
}
