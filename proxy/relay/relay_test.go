package relay

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engines are what the same tests run on.
var engines = map[string]func(Options) Engine{
	"copying": func(o Options) Engine { return NewCopying(o) },
}

// onEach runs a test on every engine, with a device over TCP and over TLS.
func onEach(t *testing.T, o Options, f func(t *testing.T, l *line)) {
	for name, engine := range engines {
		for _, kind := range []string{"tcp", "tls"} {
			t.Run(name+"/"+kind, func(t *testing.T) { f(t, newLine(t, engine(o), kind == "tls")) })
		}
	}
}

// line is a pair with somebody at either end.
type line struct {
	engine         Engine
	device, broker net.Conn // the outer ends
	pair           Pair
	done           chan Stats
}

func newLine(t *testing.T, e Engine, secure bool) *line {
	l := &line{engine: e, done: make(chan Stats, 2)}
	l.device, l.pair.Device = tcpPair(t)
	l.broker, l.pair.Upstream = tcpPair(t)
	if secure {
		l.device, l.pair.Device = tlsPair(t, l.device, l.pair.Device)
	}
	l.pair.Done = func(s Stats) { l.done <- s }
	t.Cleanup(func() {
		e.Close()
		_ = l.device.Close()
		_ = l.broker.Close()
	})
	return l
}

// stats waits for the account of the session.
func (l *line) stats(t *testing.T) Stats {
	t.Helper()
	select {
	case s := <-l.done:
		return s
	case <-time.After(patience):
		t.Fatal("session did not end")
		return Stats{}
	}
}

func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	limit := time.Now().Add(patience)
	_ = client.SetDeadline(limit)
	return client, server
}

func tlsPair(t *testing.T, client, server net.Conn) (c, s *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	c = tls.Client(client, &tls.Config{InsecureSkipVerify: true})
	s = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	failed := make(chan error, 1)
	go func() { failed <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-failed); err != nil {
		t.Fatal(err)
	}
	return c, s
}

// send writes n random bytes in random chunks, ends the stream and returns their sum.
func send(t *testing.T, c net.Conn, seed uint64, n int) [sha256.Size]byte {
	r := rand.New(rand.NewPCG(seed, 1))
	src := rand.NewChaCha8([32]byte{byte(seed)})
	sum := sha256.New()
	for n > 0 {
		chunk := make([]byte, min(n, 1+r.IntN(1<<r.IntN(17))))
		_, _ = src.Read(chunk)
		sum.Write(chunk)
		if _, err := c.Write(chunk); err != nil {
			t.Errorf("write: %v", err)
			break
		}
		n -= len(chunk)
	}
	CloseWrite(c)
	return [sha256.Size]byte(sum.Sum(nil))
}

// receive reads to the end in random chunks and returns sum and length.
func receive(t *testing.T, c net.Conn, seed uint64) ([sha256.Size]byte, int) {
	r := rand.New(rand.NewPCG(seed, 2))
	sum, total := sha256.New(), 0
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf[:1+r.IntN(len(buf))])
		sum.Write(buf[:n])
		total += n
		if err == io.EOF {
			return [sha256.Size]byte(sum.Sum(nil)), total
		}
		if err != nil {
			t.Errorf("read: %v", err)
			return [sha256.Size]byte{}, total
		}
		if r.IntN(50) == 0 {
			runtime.Gosched()
		}
	}
}

func TestStreamsArriveAsSent(t *testing.T) {
	onEach(t, Options{}, func(t *testing.T, l *line) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		const up, down = 3<<20 + 17, 2<<20 + 5
		l.pair.ToUpstream, l.pair.ToDevice = []byte("pipelined"), []byte("connack")
		l.engine.Start(l.pair)
		var sums [4][sha256.Size]byte
		var got [2]int
		var wg sync.WaitGroup
		wg.Go(func() { sums[0] = send(t, l.device, seed, up) })
		wg.Go(func() { sums[1] = send(t, l.broker, seed+1, down) })
		wg.Go(func() {
			head := make([]byte, len("pipelined"))
			if _, err := io.ReadFull(l.broker, head); err != nil || string(head) != "pipelined" {
				t.Errorf("broker's first bytes %q, %v", head, err)
			}
			sums[2], got[0] = receive(t, l.broker, seed)
		})
		wg.Go(func() {
			head := make([]byte, len("connack"))
			if _, err := io.ReadFull(l.device, head); err != nil || string(head) != "connack" {
				t.Errorf("device's first bytes %q, %v", head, err)
			}
			sums[3], got[1] = receive(t, l.device, seed)
		})
		wg.Wait()
		if sums[0] != sums[2] || sums[1] != sums[3] {
			t.Errorf("streams differ: %d of %d up, %d of %d down", got[0], up, got[1], down)
		}
		s := l.stats(t)
		if s.FromDevice != up+uint64(len("pipelined")) || s.ToDevice != down+uint64(len("connack")) {
			t.Errorf("stats %+v", s)
		}
		if from, to := l.engine.Totals(); from != s.FromDevice || to != s.ToDevice {
			t.Errorf("totals %d %d, stats %+v", from, to, s)
		}
	})
}

func TestHalfCloseIsPassedOn(t *testing.T) {
	for _, side := range []Cause{CauseDeviceEnd, CauseUpstreamEnd} {
		onEach(t, Options{}, func(t *testing.T, l *line) {
			l.engine.Start(l.pair)
			first, second := l.device, l.broker
			if side == CauseUpstreamEnd {
				first, second = second, first
			}
			if _, err := first.Write([]byte("last words")); err != nil {
				t.Fatal(err)
			}
			CloseWrite(first)
			if b, err := io.ReadAll(second); err != nil || string(b) != "last words" {
				t.Fatalf("got %q, %v", b, err)
			}
			if _, err := second.Write([]byte("an answer")); err != nil {
				t.Fatal(err)
			}
			CloseWrite(second)
			if b, err := io.ReadAll(first); err != nil || string(b) != "an answer" {
				t.Fatalf("got %q, %v", b, err)
			}
			if s := l.stats(t); s.Cause != side {
				t.Errorf("cause %v, want %v", s.Cause, side)
			}
		})
	}
}

func TestLingerIsBounded(t *testing.T) {
	onEach(t, Options{Linger: 50 * time.Millisecond}, func(t *testing.T, l *line) {
		l.engine.Start(l.pair)
		CloseWrite(l.device)
		if s := l.stats(t); s.Cause != CauseDeviceEnd { // the broker never ends its side
			t.Errorf("cause %v", s.Cause)
		}
		if _, err := io.Copy(io.Discard, l.broker); err != nil {
			t.Errorf("broker's side: %v", err)
		}
	})
}

// reset closes c so that its peer sees a reset, below TLS.
func reset(c net.Conn) {
	_ = TCP(c).SetLinger(0)
	_ = TCP(c).Close()
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("not seen in %s: %s", patience, what)
		}
	}
}

// TestResetLosesNothing breaks one side while the other is slow to take what came before: every byte arrives there, then the end.
func TestResetLosesNothing(t *testing.T) {
	for _, side := range []Cause{CauseDeviceReset, CauseUpstreamReset} {
		onEach(t, Options{}, func(t *testing.T, l *line) {
			first, second, near := l.device, l.broker, l.pair.Upstream
			if side == CauseUpstreamReset {
				first, second, near = second, first, l.pair.Device
			}
			_ = TCP(second).SetReadBuffer(32 << 10)
			_ = TCP(near).SetWriteBuffer(256 << 10)
			l.engine.Start(l.pair)
			sent := bytes.Repeat([]byte("0123456789abcdef"), 8<<10)
			if _, err := second.Write([]byte("nobody reads this")); err != nil {
				t.Fatal(err)
			}
			if _, err := first.Write(sent); err != nil {
				t.Fatal(err)
			}
			eventually(t, "everything with the relay", func() bool {
				from, to := l.engine.Totals()
				return from+to == uint64(len(sent)+len("nobody reads this"))
			})
			reset(first)
			if got, err := io.ReadAll(second); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes of %d arrived: %v", len(got), len(sent), err)
			}
			if _, err := second.Write([]byte("one more")); err != nil { // into the void, but no reset yet
				t.Errorf("write: %v", err)
			}
			_ = second.Close()
			if s := l.stats(t); s.Cause != side {
				t.Errorf("cause %v, want %v", s.Cause, side)
			}
		})
	}
}

// TestResetIsNotedByAWriter breaks a side while the other only sends.
func TestResetIsNotedByAWriter(t *testing.T) {
	onEach(t, Options{Linger: 50 * time.Millisecond}, func(t *testing.T, l *line) {
		l.engine.Start(l.pair)
		reset(l.broker)
		for {
			if _, err := l.device.Write(make([]byte, 1<<10)); err != nil {
				break
			}
		}
		if s := l.stats(t); s.Cause != CauseUpstreamReset {
			t.Errorf("cause %v", s.Cause)
		}
	})
}

// TestStuckSideDoesNotHoldOneThatIsGone lets a side break or end behind bytes that the other never takes.
func TestStuckSideDoesNotHoldOneThatIsGone(t *testing.T) {
	for _, tc := range []struct {
		leave func(net.Conn)
		cause [2]Cause
	}{
		{reset, [2]Cause{CauseDeviceReset, CauseUpstreamReset}},
		{CloseWrite, [2]Cause{CauseDeviceEnd, CauseUpstreamEnd}},
	} {
		for direction := range 2 {
			onEach(t, Options{Linger: 100 * time.Millisecond}, func(t *testing.T, l *line) {
				from := l.device
				if direction == toDevice {
					from = l.broker
				}
				for _, c := range []net.Conn{l.broker, l.pair.Upstream, l.pair.Device, l.device} {
					_ = TCP(c).SetReadBuffer(64 << 10)
					_ = TCP(c).SetWriteBuffer(16 << 10)
				}
				h := l.engine.Start(l.pair).(*session)
				chunk := make([]byte, 8<<10)
				carried := func() uint64 { from, to := l.engine.Totals(); return from + to }
				for before := uint64(0); ; before = carried() {
					if _, err := from.Write(chunk); err != nil {
						t.Fatal(err)
					}
					eventually(t, "the chunk to be carried or stuck", func() bool { return carried() >= before+uint64(len(chunk)) || h.writing[direction].Load() })
					if time.Sleep(20 * time.Millisecond); h.writing[direction].Load() {
						break
					}
				}
				tc.leave(from)
				if s := l.stats(t); s.Cause != tc.cause[direction] {
					t.Errorf("cause %v, want %v", s.Cause, tc.cause[direction])
				}
			})
		}
	}
}

// TestStalledReaderHoldsTheWriter also keeps the session: both sides are there, however long one of them takes nothing.
func TestStalledReaderHoldsTheWriter(t *testing.T) {
	onEach(t, Options{Linger: 10 * time.Millisecond}, func(t *testing.T, l *line) {
		for _, c := range []net.Conn{l.broker, l.pair.Upstream, l.pair.Device, l.device} {
			_ = TCP(c).SetReadBuffer(16 << 10)
			_ = TCP(c).SetWriteBuffer(16 << 10)
		}
		l.engine.Start(l.pair)
		_ = l.broker.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		sent, chunk := 0, bytes.Repeat([]byte{7}, 32<<10)
		for {
			n, err := l.broker.Write(chunk)
			sent += n
			if err != nil {
				break // the device takes nothing, and nobody stores it for the device
			}
			if sent > 16<<20 {
				t.Fatal("the relay swallows what nobody reads")
			}
		}
		got, err := io.ReadAtLeast(l.device, make([]byte, sent), sent)
		if got != sent {
			t.Errorf("of %d bytes %d arrived: %v", sent, got, err)
		}
	})
}

func TestCloseDuringTransfer(t *testing.T) {
	onEach(t, Options{}, func(t *testing.T, l *line) {
		h := l.engine.Start(l.pair)
		go func() {
			for {
				if _, err := l.device.Write(make([]byte, 8<<10)); err != nil {
					return
				}
			}
		}()
		if _, err := io.ReadFull(l.broker, make([]byte, 256<<10)); err != nil {
			t.Fatal(err)
		}
		h.Close(CauseShutdown)
		h.Close(CauseDeviceReset)
		if s := l.stats(t); s.Cause != CauseShutdown {
			t.Errorf("cause %v", s.Cause)
		}
		l.engine.Close()
		l.engine.Close()
		if len(l.done) > 0 {
			t.Error("the end was told twice")
		}
	})
}

func TestStartAfterClose(t *testing.T) {
	onEach(t, Options{}, func(t *testing.T, l *line) {
		l.engine.Close()
		l.engine.Start(l.pair)
		if s := l.stats(t); s.Cause != CauseShutdown {
			t.Errorf("cause %v", s.Cause)
		}
		if _, err := io.Copy(io.Discard, l.broker); err != nil {
			t.Errorf("broker's side: %v", err)
		}
	})
}

func TestEngineCloseEndsSessions(t *testing.T) {
	onEach(t, Options{}, func(t *testing.T, l *line) {
		l.engine.Start(l.pair)
		l.engine.Close()
		if len(l.done) != 1 {
			t.Error("Close did not wait for the session")
		}
	})
}

func TestCausesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Causes() {
		if s := c.String(); s == "unknown" || seen[s] {
			t.Errorf("cause %d is called %q", c, s)
		} else {
			seen[s] = true
		}
	}
}

func BenchmarkRelay(b *testing.B) {
	e := NewCopying(Options{})
	defer e.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	join := func() (net.Conn, net.Conn) {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		s, err := ln.Accept()
		if err != nil {
			b.Fatal(err)
		}
		return c, s
	}
	device, in := join()
	broker, out := join()
	defer device.Close()
	defer broker.Close()
	e.Start(Pair{Device: in, Upstream: out, Done: func(Stats) {}})
	msg := make([]byte, 64)
	b.SetBytes(int64(len(msg)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := device.Write(msg); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(broker, msg); err != nil {
			b.Fatal(err)
		}
	}
}
