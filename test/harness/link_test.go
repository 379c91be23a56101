package harness

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// startEcho returns the address of a server that sends everything back.
func startEcho(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func startLink(t *testing.T) *Link {
	t.Helper()
	target := startEcho(t)
	l, err := NewLink(LinkOptions{Target: target})
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	return l
}

func write(t *testing.T, conn net.Conn, s string) {
	t.Helper()
	_, err := conn.Write([]byte(s))
	must(t, err)
}

// silent reports that nothing arrives for a moment.
func silent(t *testing.T, conn net.Conn) {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	n, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read gave %d bytes and %v, want silence", n, err)
	}
	must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
}

func TestLinkPassesEverythingAndTheEnd(t *testing.T) {
	l := startLink(t)
	conn := dialRaw(t, l.Address())
	sent := make([]byte, 3<<20)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	go func() {
		_, _ = conn.Write(sent)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	must(t, err)
	if !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back, and not the same", len(got))
	}
	eventually(t, "the connection is forgotten", func() bool { return l.Connections() == 0 })
	if l.Accepted() != 1 {
		t.Errorf("accepted %d", l.Accepted())
	}
}

func TestLinkCut(t *testing.T) {
	l := startLink(t)
	conn := dialRaw(t, l.Address())
	write(t, conn, "ping")
	readExactly(t, conn, 4)
	must(t, l.Set(LinkBehaviour{Mode: LinkCut}))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a cut connection lives")
	}
	if _, err := net.Dial("tcp", l.Address()); err == nil {
		t.Error("a cut link accepted")
	}
	must(t, l.Set(LinkBehaviour{}))
	again := dialRaw(t, l.Address())
	write(t, again, "pong")
	readExactly(t, again, 4)
}

func TestLinkBlackholes(t *testing.T) {
	for _, mode := range []LinkMode{LinkBlackhole, LinkBlackholeUp, LinkBlackholeDown} {
		l := startLink(t)
		live := dialRaw(t, l.Address())
		write(t, live, "a")
		readExactly(t, live, 1)
		must(t, l.Set(LinkBehaviour{Mode: mode}))
		write(t, live, "held")
		fresh := dialRaw(t, l.Address())
		write(t, fresh, "back")
		silent(t, live)
		silent(t, fresh)
		must(t, l.Set(LinkBehaviour{}))
		for conn, want := range map[net.Conn]string{live: "held", fresh: "back"} {
			if got := readExactly(t, conn, 4); string(got) != want {
				t.Errorf("mode %d: %q after healing, want %q", mode, got, want)
			}
		}
		must(t, l.Set(LinkBehaviour{Mode: mode})) // closing must not wait for a blackhole
		write(t, live, "lost")
		must(t, l.Close())
	}
}

func TestLinkOneWayBlackholePassesTheOtherWay(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	for _, mode := range []LinkMode{LinkBlackholeUp, LinkBlackholeDown} {
		l, err := NewLink(LinkOptions{Target: ln.Addr().String()})
		must(t, err)
		must(t, l.Set(LinkBehaviour{Mode: mode}))
		client := dialRaw(t, l.Address())
		server, err := ln.Accept()
		must(t, err)
		must(t, server.SetDeadline(time.Now().Add(20*time.Second)))
		open, shut := client, server
		if mode == LinkBlackholeUp {
			open, shut = server, client
		}
		write(t, open, "open")
		write(t, shut, "shut")
		if got := readExactly(t, shut, 4); string(got) != "open" {
			t.Errorf("mode %d: got %q", mode, got)
		}
		silent(t, open)
		must(t, l.Close())
		_ = server.Close()
	}
}

func TestLinkCutAfter(t *testing.T) {
	l := startLink(t)
	for _, b := range []LinkBehaviour{{CutAfterUp: 10}, {CutAfterDown: 10}} {
		must(t, l.Set(b))
		conn := dialRaw(t, l.Address())
		write(t, conn, "0123456")
		if got := readExactly(t, conn, 7); string(got) != "0123456" {
			t.Fatalf("got %q", got)
		}
		write(t, conn, "789abc")
		rest, _ := io.ReadAll(conn)
		if b.CutAfterDown > 0 && string(rest) != "789" {
			t.Errorf("got %q before the cut, want 789", rest)
		}
		if len(rest) > 3 {
			t.Errorf("%d bytes too many", len(rest)-3)
		}
		_ = conn.Close()
	}
}

func TestLinkDelaysWithoutReordering(t *testing.T) {
	l := startLink(t)
	conn := dialRaw(t, l.Address())
	write(t, conn, "x")
	readExactly(t, conn, 1)
	const delay = 30 * time.Millisecond
	must(t, l.Set(LinkBehaviour{Delay: delay}))
	begin := time.Now()
	for _, s := range []string{"one ", "two ", "three"} {
		write(t, conn, s)
	}
	if got := readExactly(t, conn, 13); string(got) != "one two three" {
		t.Errorf("got %q", got)
	}
	if took := time.Since(begin); took < 2*delay {
		t.Errorf("round trip of %v is faster than the link", took)
	}
}

func TestLinkSlices(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	l, err := NewLink(LinkOptions{Target: ln.Addr().String()})
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	must(t, l.Set(LinkBehaviour{Slice: 2, SlicePause: 20 * time.Millisecond}))
	client := dialRaw(t, l.Address())
	server, err := ln.Accept()
	must(t, err)
	defer server.Close()
	must(t, server.SetDeadline(time.Now().Add(20*time.Second)))
	write(t, client, "0123456789")
	got, reads := "", 0
	for len(got) < 10 {
		buf := make([]byte, 100)
		n, err := server.Read(buf)
		must(t, err)
		got += string(buf[:n])
		reads++
	}
	if got != "0123456789" || reads < 2 {
		t.Errorf("got %q in %d reads", got, reads)
	}
}

func TestLinkToADeadTargetClosesTheClient(t *testing.T) {
	port, err := holdPort("")
	must(t, err)
	defer port.release()
	l, err := NewLink(LinkOptions{Target: port.address})
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	if _, err := dialRaw(t, l.Address()).Read(make([]byte, 1)); err == nil {
		t.Error("read succeeded")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Set(LinkBehaviour{}); err == nil {
		t.Error("a closed link was changed")
	}
}
