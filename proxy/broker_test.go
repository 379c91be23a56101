package proxy

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"turnout/fsm"
	"turnout/proxy/mqtt"
)

// broker is a scripted broker node: it keeps what it was sent.
type broker struct {
	t    testing.TB
	name string
	ln   net.Listener
	wg   sync.WaitGroup

	mu      sync.Mutex
	script  func(*visit) // nil: accept
	visits  []*visit
	conns   map[net.Conn]bool
	stopped bool
}

// visit is one connection to a broker.
type visit struct {
	broker *broker
	conn   net.Conn
	packet []byte // the CONNECT as it came
	c      mqtt.Connect

	mu     sync.Mutex
	after  []byte // what came behind the CONNECT
	closed bool
	reset  bool
}

var (
	accept3 = []byte{0x20, 2, 0, 0}
	accept5 = []byte{0x20, 3, 0, 0, 0}
)

func newBroker(t testing.TB, name string) *broker {
	b := &broker{t: t, name: name, conns: map[net.Conn]bool{}}
	b.listen("127.0.0.1:0")
	t.Cleanup(b.stop)
	return b
}

func (b *broker) listen(addr string) {
	var err error
	if b.ln, err = net.Listen("tcp", addr); err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	b.stopped = false
	b.mu.Unlock()
	b.wg.Go(func() { b.accept(b.ln) })
}

func (b *broker) addr() string { return b.ln.Addr().String() }

func (b *broker) change() fsm.NodeChange { return up(b.name, b.addr()) }

func (b *broker) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		if b.stopped {
			_ = c.Close()
		}
		b.conns[c] = true
		b.mu.Unlock()
		b.wg.Go(func() { b.serve(c) })
	}
}

func (b *broker) stop() {
	_ = b.ln.Close()
	b.mu.Lock()
	b.stopped = true
	for c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

func (b *broker) serve(c net.Conn) {
	defer c.Close()
	packet, surplus, err := mqtt.ReadConnect(c, nil, 0)
	if err != nil {
		return
	}
	parsed, err := mqtt.ParseConnect(packet, false)
	if err != nil {
		b.t.Errorf("broker %s was sent what it can't read: %v", b.name, err)
		return
	}
	v := &visit{broker: b, conn: c, packet: bytes.Clone(packet), c: parsed, after: bytes.Clone(surplus)}
	b.mu.Lock()
	b.visits = append(b.visits, v)
	script := b.script
	b.mu.Unlock()
	if script == nil {
		script = (*visit).accept
	}
	script(v)
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
}

func (b *broker) setScript(f func(*visit)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.script = f
}

func (b *broker) seen() []*visit {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*visit(nil), b.visits...)
}

func (b *broker) ids() (ids []string) {
	for _, v := range b.seen() {
		ids = append(ids, string(v.c.ClientID))
	}
	return ids
}

// accept answers with success and keeps what follows until the end.
func (v *visit) accept() {
	ack := accept3
	if v.c.Version == mqtt.V5 {
		ack = accept5
	}
	v.answer(ack)
	v.drain()
}

func (v *visit) answer(b []byte) { _, _ = v.conn.Write(b) }

func (v *visit) drain() {
	buf := make([]byte, 32<<10)
	for {
		n, err := v.conn.Read(buf)
		v.mu.Lock()
		v.after = append(v.after, buf[:n]...)
		v.reset = v.reset || err != nil && err != io.EOF
		v.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (v *visit) got() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return bytes.Clone(v.after)
}

func (v *visit) isClosed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.closed
}
