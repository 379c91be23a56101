package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"turnout/fsm"
	"turnout/proxy/mqtt"
	"turnout/proxy/relay"
)

// session is one connection from a device until it is refused or handed to the relay. It belongs to the goroutine of serve.
type session struct {
	g        *Gateway
	l        *listener
	conn     net.Conn // the device
	remote   net.Addr // as the PROXY header says, where there is one
	accepted time.Time
	deadline time.Time // of CONNACK

	packet   []byte // the CONNECT as it came; it and connect lie in a pooled buffer
	surplus  []byte // what came behind it in the same read
	connect  mqtt.Connect
	key      []byte
	keyBytes [fsm.MaxKeyBytes]byte
	decision Decision
	early    early
}

// serve takes one accepted connection to its end or into the relay.
func (g *Gateway) serve(l *listener, raw net.Conn) {
	defer g.serving.Done()
	s := &session{g: g, l: l, conn: raw, remote: raw.RemoteAddr(), accepted: time.Now()}
	s.deadline = s.accepted.Add(g.cfg.ConnectTimeout)
	if !g.tracker.add(raw) {
		l.results[resultShuttingDown].Inc()
		return
	}
	_ = raw.SetDeadline(s.deadline)
	res, handed := s.run()
	g.tracker.remove(raw)
	if !handed {
		_ = s.conn.Close()
		if g.ctx.Err() != nil {
			res = resultShuttingDown
		}
		g.log.Debug("device not connected", "listener", l.cfg.Name, "remote", s.remote.String(), "result", string(res))
	}
	l.results[res].Inc()
}

// run reports how it went, and whether the connection belongs to the relay now.
func (s *session) run() (res result, handed bool) {
	conn, remote, res := s.l.open(s.conn)
	if res != "" {
		return res, false
	}
	s.conn, s.remote = conn, remote
	buf := s.g.buffers.Get().(*[]byte)
	defer s.g.buffers.Put(buf)
	(*buf)[0] = 0 // tells below whether anything came: no CONNECT begins with 0
	var err error
	if s.packet, s.surplus, err = mqtt.ReadConnect(s.conn, *buf, s.g.cfg.MaxConnectBytes); err != nil {
		if res = s.readFailed(err); res == resultHangup && (*buf)[0] == 0 {
			res = resultProbe // a load balancer that ends its probe with a reset
		}
		return res, false
	}
	if s.connect, err = mqtt.ParseConnect(s.packet, s.g.cfg.Strict); err != nil {
		return s.readFailed(err), false
	}
	s.conn = bare(s.conn)
	if res := s.route(); res != "" {
		return res, false
	}
	return s.place()
}

// readFailed answers a CONNECT that could not be read, where there is an answer to it.
func (s *session) readFailed(err error) result {
	var parse *mqtt.ParseError
	switch {
	case errors.As(err, &parse):
		s.refuse(parse.AppendReply(nil))
		return result(parse.Reason)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return resultTimeout
	case err == io.EOF:
		return resultProbe
	}
	return resultHangup
}

// route finds key and decision. A result means that the device was refused.
func (s *session) route() result {
	g := s.g
	var v *view
	var in lookup
	for range 4 { // once more when the tables changed in between, so that record and topology belong together
		v = g.views.get()
		if v.identity == nil {
			s.refuseAs(mqtt.RefuseServerUnavailable)
			return resultNotReady
		}
		var err error
		if s.key, err = v.identity.Key(s.keyBytes[:0], &s.connect, v.topology.Settings.Secret); err != nil {
			s.refuseAs(mqtt.RefuseClientID)
			return resultKeyTooLong
		}
		in = lookup{keyed: len(s.key) > 0}
		in.device, in.found = g.tables.Lookup(s.key)
		if g.tables.Topology() == v.topology {
			break
		}
	}
	if in.keyed && !in.found && !g.caughtUp() {
		s.refuseAs(mqtt.RefuseServerUnavailable)
		return resultNotReady
	}
	in.hash = rand.Uint64()
	if in.keyed {
		in.hash = keyHash(s.key)
	}
	s.decision = decide(v, in, g.health, g.cfg.MaxAttempts)
	if r := s.decision.Refused; r != RefusedNot {
		s.refuseAs(r.refusal())
		return result(r.String())
	}
	return ""
}

// place tries the candidates until one answers, and gives its answer to the device.
func (s *session) place() (res result, handed bool) {
	ctx, cancel := context.WithDeadline(s.g.ctx, s.deadline)
	defer cancel()
	buf, hold := s.g.buffers.Get().(*[]byte), s.g.buffers.Get().(*[]byte)
	defer s.g.buffers.Put(buf)
	defer s.g.buffers.Put(hold)
	s.early = early{conn: s.conn, buf: *hold, limit: maxEarlyBytes, held: bytes.Clone(s.surplus), gone: cancel}
	s.early.start()
	u, outcome, refusal := s.attempts(ctx, *buf)
	if u != nil && outcome == "" {
		return s.authenticate(ctx, u)
	}
	s.early.stop(s.deadline)
	switch {
	case s.early.broken || s.g.ctx.Err() != nil:
		if u != nil {
			s.g.abandon(u.conn)
		}
		return resultHangup, false
	case u == nil && len(refusal) > 0:
		s.refuse(refusal)
		return resultUnavailable, false
	case u == nil:
		s.refuseAs(mqtt.RefuseServerUnavailable)
		return resultUnavailable, false
	case outcome == attemptRefused:
		return s.passRefusal(u), false
	}
	return s.handOver(u), true
}

// attempts asks the candidates in their order for as long as ctx lasts. u is nil when none of them took the CONNECT on;
// refusal is then the last CONNACK that said "cannot serve", if there was one.
func (s *session) attempts(ctx context.Context, buf []byte) (u *upstream, outcome string, refusal []byte) {
	queue := s.decision.candidates
	n := s.decision.count
	for i, moves := 0, 0; i < n && ctx.Err() == nil; i++ {
		node := queue[i]
		if !s.g.health.begin(node.ID) && i < n-1 && moves < n {
			copy(queue[i:n], queue[i+1:n])
			queue[n-1] = node
			moves, i = moves+1, i-1
			continue
		}
		u, outcome = s.try(ctx, node, buf)
		if outcome != "" {
			s.report(node, outcome)
		} else {
			s.g.health.released(node.ID) // it answers; what follows takes as long as the device likes
		}
		switch outcome {
		case "", attemptAccepted, attemptRefused:
			return u, outcome, nil
		case attemptCannotServe:
			refusal = append(refusal[:0], u.packet()...)
		}
	}
	return nil, outcome, refusal
}

// authenticate carries the packets of enhanced authentication (5.0 §4.12) both ways until the CONNACK. The first of them
// reaches the device, so no other node may be asked any more.
func (s *session) authenticate(ctx context.Context, u *upstream) (res result, handed bool) {
	_ = u.conn.SetDeadline(s.deadline)
	release := interrupt(ctx, u.conn)
	s.early.stop(s.deadline)
	if s.early.broken {
		release()
		s.report(u.node, attemptAbandoned)
		s.g.abandon(u.conn)
		return resultHangup, false
	}
	_, err := u.conn.Write(s.early.held)
	s.early.held, s.early.to = nil, u.conn
	s.early.start()
	for err == nil && mqtt.TypeOf(u.answer[0]) != mqtt.CONNACK {
		if _, err = s.conn.Write(u.packet()); err != nil {
			break
		}
		u.answer = append(u.answer[:0], u.answer[u.first:]...)
		err = u.readPacket()
	}
	s.early.stop(s.deadline)
	if !release() && err == nil {
		err = ctx.Err()
	}
	outcome := ""
	if err == nil {
		// Other nodes are out of the question, so that "cannot serve" is a refusal like any other for the device.
		if outcome = s.judge(u); outcome == attemptAccepted && s.early.lost {
			err = io.ErrShortWrite // what the device sent is not whole at the node: there can be no session
		}
	}
	if err != nil || s.early.broken {
		s.report(u.node, attemptOutcome(ctx, err, true))
		s.g.abandon(u.conn)
		if s.early.broken {
			return resultHangup, false
		}
		s.refuseAs(mqtt.RefuseServerUnavailable)
		return resultUnavailable, false
	}
	s.report(u.node, outcome)
	if outcome != attemptAccepted {
		return s.passRefusal(u), false
	}
	return s.handOver(u), true
}

// passRefusal gives a broker's refusal to the device as it is.
func (s *session) passRefusal(u *upstream) result {
	if u.unread {
		s.g.abandon(u.conn)
	} else {
		_ = u.conn.Close()
	}
	s.refuse(u.packet())
	return resultBroker
}

// handOver gives both connections to the relay, after a successful CONNACK.
func (s *session) handOver(u *upstream) result {
	g := s.g
	place := Place{Cluster: s.decision.Cluster.ID, Node: u.node.ID}
	live := &liveSession{key: fsm.DeviceKey(s.key), place: place, listener: s.l.cfg.Name, since: s.accepted}
	if s.decision.records(u.node) {
		g.bindings.enqueue(live.key, place)
	}
	_ = u.conn.SetDeadline(time.Time{})
	_ = s.conn.SetDeadline(time.Time{})
	g.metrics.duration.Observe(time.Since(s.accepted).Seconds())
	g.sessions.add(live)
	h := g.engine.Start(relay.Pair{
		Device: s.conn, Upstream: u.conn, ToUpstream: s.early.held, ToDevice: bytes.Clone(u.answer),
		Done: func(st relay.Stats) {
			g.sessions.remove(live)
			g.metrics.ends.WithLabelValues(st.Cause.String()).Inc()
		},
	})
	g.sessions.attach(live, h)
	return resultAccepted
}

// refuseAs refuses in the client's own version.
func (s *session) refuseAs(r mqtt.Refusal) {
	s.refuse(mqtt.AppendConnack(nil, s.connect.Version, r, "", "", s.connect.MaximumPacketSize))
}

// refuse sends the last packet of a connection, if there is one, in an order that lets the device read it: packet, half-close, reading on for
// a moment. The caller closes.
func (s *session) refuse(packet []byte) {
	if len(packet) == 0 {
		return
	}
	_ = s.conn.SetDeadline(time.Now().Add(s.g.grace))
	if _, err := s.conn.Write(packet); err != nil {
		return
	}
	relay.CloseWrite(s.conn)
	s.g.discard(s.conn)
}
