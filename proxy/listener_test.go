package proxy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"turnout/fsm"
	"turnout/proxy/relay"
)

// certificates writes a self-signed pair to files and returns it with its pool.
func certificates(t *testing.T) (cert, key string, pair tls.Certificate) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, b := range map[string][]byte{cert: certPEM, key: keyPEM} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if pair, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	return cert, key, pair
}

func TestProxyProtocol(t *testing.T) {
	v1 := []byte("PROXY TCP4 192.0.2.9 192.0.2.1 40000 1883\r\n")
	v2 := func(h *proxyproto.Header) []byte {
		b, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	two := v2(proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 1}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 2}))
	lying := bytes.Clone(two)
	lying[15] = 2 // shorter than its addresses
	local := v2(&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL})
	here, elsewhere := []string{"127.0.0.0/8"}, []string{"192.0.2.0/24"}
	for _, tc := range []struct {
		name    string
		mode    string
		trusted []string
		send    []byte
		byByte  bool
		result  string // "accepted": connected
	}{
		{"require, v1", ProxyRequire, here, append(bytes.Clone(v1), packet3("a")...), false, "accepted"},
		{"require, v2", ProxyRequire, here, append(bytes.Clone(two), packet3("a")...), false, "accepted"},
		{"require, v2 byte by byte", ProxyRequire, here, append(bytes.Clone(two), packet3("a")...), true, "accepted"},
		{"require, LOCAL", ProxyRequire, here, append(bytes.Clone(local), packet3("a")...), false, "accepted"},
		{"require, large CONNECT", ProxyRequire, here, append(bytes.Clone(v1), connectPacket("MQTT", 4, 0xC2, nil, field("a"), field(string(bytes.Repeat([]byte("u"), 9000))), field("p"))...), false, "accepted"},
		{"require, none", ProxyRequire, here, packet3("a"), false, "proxy_header"},
		{"require, untrusted", ProxyRequire, elsewhere, append(bytes.Clone(v1), packet3("a")...), false, "proxy_header"},
		{"require, lying length", ProxyRequire, here, append(bytes.Clone(lying), packet3("a")...), false, "proxy_header"},
		{"require, endless v1", ProxyRequire, here, append([]byte("PROXY TCP4 "), bytes.Repeat([]byte("1"), 300)...), false, "proxy_header"},
		{"require, header and end", ProxyRequire, here, nil, false, "probe"},
		{"accept, v1", ProxyAccept, here, append(bytes.Clone(v1), packet3("a")...), false, "accepted"},
		{"accept, none", ProxyAccept, here, packet3("a"), false, "accepted"},
		{"accept, untrusted with header", ProxyAccept, elsewhere, append(bytes.Clone(v1), packet3("a")...), false, "not_mqtt"},
		{"accept, untrusted without", ProxyAccept, elsewhere, packet3("a"), false, "accepted"},
		{"off, header", ProxyOff, nil, append(bytes.Clone(v1), packet3("a")...), false, "not_mqtt"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Listeners[0].ProxyProtocol, cfg.Listeners[0].Trusted = tc.mode, tc.trusted
			w, b := oneCluster(t, cfg)
			c := w.dial()
			if tc.byByte {
				for _, x := range tc.send {
					_, _ = c.Write([]byte{x})
				}
			} else {
				_, _ = c.Write(tc.send)
			}
			if tc.send == nil {
				_ = c.(*net.TCPConn).CloseWrite()
			}
			if tc.result == "accepted" {
				expect(t, c, accept3)
				_, _ = c.Write([]byte{0xC0, 0})
				eventually(t, "PINGREQ", func() bool { return bytes.Equal(b.seen()[0].got(), []byte{0xC0, 0}) })
			} else {
				expectClosed(t, c)
			}
			eventually(t, tc.result, func() bool { return w.results(tc.result) == 1 })
		})
	}
}

func TestTLS(t *testing.T) {
	cert, key, pair := certificates(t)
	pool := x509.NewCertPool()
	pool.AddCert(pair.Leaf)
	cfg := testConfig()
	cfg.Listeners = append(cfg.Listeners,
		ListenerConfig{Name: "tls", Address: "127.0.0.1:0", TLS: &TLSConfig{CertFile: cert, KeyFile: key}},
		ListenerConfig{Name: "mutual", Address: "127.0.0.1:0", TLS: &TLSConfig{CertFile: cert, KeyFile: key, ClientCAFile: cert}},
		ListenerConfig{Name: "behind", Address: "127.0.0.1:0", TLS: &TLSConfig{CertFile: cert, KeyFile: key}, ProxyProtocol: ProxyRequire, Trusted: []string{"127.0.0.1/32"}},
	)
	w, b := oneCluster(t, cfg)
	client := &tls.Config{RootCAs: pool, ServerName: "localhost"}
	withCert := client.Clone()
	withCert.Certificates = []tls.Certificate{pair}

	for i, listener := range []string{"tls", "mutual", "behind"} {
		raw := w.dialTo(listener)
		use := client
		if listener == "mutual" {
			use = withCert
		}
		if listener == "behind" {
			_, _ = raw.Write([]byte("PROXY TCP4 192.0.2.9 192.0.2.1 40000 1883\r\n"))
		}
		c := tls.Client(raw, use)
		_, _ = c.Write(append(packet5("a"), 0xC0, 0))
		expect(t, c, accept5)
		v := b.seen()[i]
		eventually(t, "PINGREQ", func() bool { return bytes.Equal(v.got(), []byte{0xC0, 0}) })
		// close_notify is a half-close: the broker sees the end.
		_ = c.CloseWrite()
		eventually(t, "the end at the broker", v.isClosed)
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %v, want the end", listener, err)
		}
	}

	w.device(fsm.DeviceChange{Key: "blocked", Blocked: ptr(true)})
	c := tls.Client(w.dialTo("tls"), client)
	_, _ = c.Write(append(packet5("blocked"), bytes.Repeat([]byte{0xC0, 0}, 9000)...))
	expectEnd(t, c, []byte{0x20, 3, 0, 0x8A, 0})

	plain := w.dialTo("tls")
	_, _ = plain.Write(packet3("a"))
	if got, _ := io.ReadAll(plain); bytes.Contains(got, []byte{0x20, 2}) {
		t.Errorf("plain MQTT on a TLS port got % x", got)
	}
	old := tls.Client(w.dialTo("tls"), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10})
	if err := old.Handshake(); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	anonymous := tls.Client(w.dialTo("mutual"), client)
	if _, err := anonymous.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("without a client certificate: %v", err)
	}
	probe := w.dialTo("tls")
	_ = probe.Close()
	eventually(t, "results", func() bool {
		return w.results("tls_handshake") == 3 && w.results("probe") == 1 && w.results("blocked") == 1
	})
}

// TestSilenceIsCountedAlike ends connections before MQTT begins: in order, by a reset, and not at all.
func TestSilenceIsCountedAlike(t *testing.T) {
	cert, key, _ := certificates(t)
	secure := &TLSConfig{CertFile: cert, KeyFile: key}
	for _, l := range []ListenerConfig{
		{Name: "plain"}, {Name: "tls", TLS: secure},
		{Name: "behind", ProxyProtocol: ProxyRequire, Trusted: []string{"127.0.0.1/32"}},
		{Name: "both", ProxyProtocol: ProxyAccept, Trusted: []string{"127.0.0.1/32"}, TLS: secure},
	} {
		t.Run(l.Name, func(t *testing.T) {
			l.Address = "127.0.0.1:0"
			cfg := testConfig()
			cfg.Listeners, cfg.ConnectTimeout = []ListenerConfig{l}, 300*time.Millisecond
			w, _ := oneCluster(t, cfg)
			_ = w.dialTo(l.Name).Close()
			c := w.dialTo(l.Name)
			eventually(t, "the connection to be accepted", func() bool {
				w.gw.tracker.mu.Lock()
				defer w.gw.tracker.mu.Unlock()
				return len(w.gw.tracker.conns) > 0
			})
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
			eventually(t, "two probes", func() bool { return w.results("probe") == 2 })
			w.dialTo(l.Name)
			half := w.dialTo(l.Name)
			switch {
			case l.ProxyProtocol != "":
				_, _ = half.Write([]byte("\r\n\r\n\x00\r\nQ")) // of version 2
			case l.TLS != nil:
				_, _ = half.Write([]byte{0x16, 3, 1, 0, 200})
			default:
				_, _ = half.Write([]byte{0x10, 200})
			}
			eventually(t, "two timeouts", func() bool { return w.results("timeout") == 2 })
			if n := w.metric("turnout_connects_total"); n != 4 {
				t.Errorf("%v results counted", n)
			}
		})
	}
}

// TestStreamsThroughTheGateway compares random streams by hash, both ways.
func TestStreamsThroughTheGateway(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const n = 4 << 20
	stream := func(seed uint64) []byte {
		b := make([]byte, n)
		_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
		return b
	}
	upward, downward := stream(seed), stream(seed+1)
	w, b := oneCluster(t, testConfig())
	b.setScript(func(v *visit) {
		go func() {
			r := rand.New(rand.NewPCG(seed, 1))
			v.answer(accept5)
			for rest := downward; len(rest) > 0; {
				k := min(len(rest), 1+r.IntN(1<<r.IntN(17)))
				v.answer(rest[:k])
				rest = rest[k:]
			}
			relay.CloseWrite(v.conn)
		}()
		v.drain()
	})
	c := w.dial()
	go func() {
		r := rand.New(rand.NewPCG(seed, 2))
		for rest := append(packet5("a"), upward...); len(rest) > 0; {
			k := min(len(rest), 1+r.IntN(1<<r.IntN(17)))
			if _, err := c.Write(rest[:k]); err != nil {
				return
			}
			rest = rest[k:]
		}
		relay.CloseWrite(c)
	}()
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(append(bytes.Clone(accept5), downward...)) {
		t.Errorf("the device got %d bytes of %d: %v", len(got), len(accept5)+n, err)
	}
	v := b.seen()[0]
	eventually(t, "the end at the broker", v.isClosed)
	if sha256.Sum256(v.got()) != sha256.Sum256(upward) {
		t.Errorf("the broker got %d bytes of %d", len(v.got()), n)
	}
	if from, to := w.metric("turnout_relayed_bytes_total", "direction", "from_device"), w.metric("turnout_relayed_bytes_total", "direction", "to_device"); from != n || to != n+float64(len(accept5)) {
		t.Errorf("counted %v and %v bytes", from, to)
	}
}

// flaky is a listener whose accept fails in between.
type flaky struct {
	net.Listener
	errs chan error
}

func (f *flaky) Accept() (net.Conn, error) {
	select {
	case err := <-f.errs:
		return nil, err
	default:
		return f.Listener.Accept()
	}
}

func TestAcceptErrorsPass(t *testing.T) {
	tb := newTables(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	g, err := New(testConfig(), Options{Tables: tb.Tables, Proposer: tb})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := listen(context.Background(), g.cfg.Listeners[0], g.metrics)
	if err != nil {
		t.Fatal(err)
	}
	f := &flaky{Listener: ln.ln, errs: make(chan error, 3)}
	ln.ln = f
	for range 3 {
		f.errs <- &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	g.listeners = append(g.listeners, ln)
	g.serving.Add(1)
	go g.accept(ln)
	w := &world{tables: tb, gw: g}
	expectEnd(t, w.connect(packet3("a"), []byte{0x20, 2, 0, 5}), nil)
	for range 2 {
		if err := g.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Open(t.Context()); err == nil {
		t.Error("a closed gateway opened")
	}
}

func TestOpenFails(t *testing.T) {
	tb := newTables(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, l := range map[string]ListenerConfig{
		"address in use":     {Name: "b", Address: taken.Addr().String()},
		"no such file":       {Name: "b", Address: "127.0.0.1:0", TLS: &TLSConfig{CertFile: "/nonexistent", KeyFile: "/nonexistent"}},
		"bad authority file": {Name: "b", Address: "127.0.0.1:0", TLS: badCA(t)},
	} {
		cfg := testConfig()
		cfg.Listeners = append(cfg.Listeners, l)
		g, err := New(cfg, Options{Tables: tb.Tables, Proposer: tb})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Open(t.Context()); err == nil {
			t.Errorf("%s: opened", name)
		}
		if len(g.Addrs()) > 0 {
			t.Errorf("%s: a listener stayed open", name)
		}
		if err := g.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func badCA(t *testing.T) *TLSConfig {
	cert, key, _ := certificates(t)
	return &TLSConfig{CertFile: cert, KeyFile: key, ClientCAFile: key}
}
