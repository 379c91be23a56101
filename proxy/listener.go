package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	firstAcceptPause = 5 * time.Millisecond
	mostAcceptPause  = time.Second
	// proxyBuffer holds a PROXY v1 line (at most 107 bytes) or the usual v2 header.
	proxyBuffer = 256
)

// listener is one open address for devices.
type listener struct {
	cfg     ListenerConfig
	ln      net.Listener
	tls     *tls.Config // nil: plain
	trusted []netip.Prefix
	results map[result]prometheus.Counter
	errors  prometheus.Counter
}

// listen binds a listener and reads its files.
func listen(ctx context.Context, cfg ListenerConfig, m *Metrics) (*listener, error) {
	l := &listener{cfg: cfg, results: m.listenerMetrics(cfg.Name), errors: m.accepting.WithLabelValues(cfg.Name)}
	var err error
	if l.trusted, err = cfg.trusted(); err != nil {
		return nil, err
	}
	if cfg.TLS != nil {
		if l.tls, err = cfg.TLS.load(); err != nil {
			return nil, err
		}
	}
	// Keep alive is the relay's business; before it there is a deadline.
	lc := net.ListenConfig{KeepAlive: -1}
	if l.ln, err = lc.Listen(ctx, "tcp", cfg.Address); err != nil {
		return nil, fmt.Errorf("listen %s: %w", cfg.Name, err)
	}
	return l, nil
}

func (t *TLSConfig) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	if t.ClientCAFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(t.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("load client_ca_file: %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("load client_ca_file: holds no certificate")
	}
	return c, nil
}

// accept hands every connection to serve until the listener is closed. Errors of accept (no descriptors left, a peer gone already) pass.
func (g *Gateway) accept(l *listener) {
	defer g.serving.Done()
	pause := firstAcceptPause
	for {
		conn, err := l.ln.Accept()
		switch {
		case err == nil:
			pause = firstAcceptPause
			g.serving.Add(1)
			go g.serve(l, conn)
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		l.errors.Inc()
		g.log.Warn("accept", "listener", l.cfg.Name, "error", err, "pause", pause)
		if !sleep(g.ctx, pause) {
			return
		}
		pause = min(2*pause, mostAcceptPause)
	}
}

// open does what comes before MQTT: PROXY header, then TLS. A result means that the connection is of no use. The connection's deadline is set.
func (l *listener) open(raw net.Conn) (conn net.Conn, remote net.Addr, res result) {
	conn, remote = raw, raw.RemoteAddr()
	if l.cfg.ProxyProtocol == ProxyAccept || l.cfg.ProxyProtocol == ProxyRequire {
		if conn, remote, res = l.readProxyHeader(raw); res != "" {
			return nil, nil, res
		}
	}
	if l.tls == nil {
		return conn, remote, ""
	}
	t := tls.Server(conn, l.tls)
	if err := t.Handshake(); err != nil {
		if t.ConnectionState().Version == 0 { // no ClientHello
			if res := silent(err); res != "" {
				return nil, nil, res
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil, resultTimeout
		}
		return nil, nil, resultTLS
	}
	return t, remote, ""
}

// silent names the end of a connection on which nothing came: "" when it was neither a probe, be it ended in order or by a reset, nor silence.
func silent(err error) result {
	switch {
	case err == io.EOF, errors.Is(err, syscall.ECONNRESET):
		return resultProbe
	case errors.Is(err, os.ErrDeadlineExceeded):
		return resultTimeout
	}
	return ""
}

// readProxyHeader reads the header of the PROXY protocol, version 1 or 2, from a source that may send one.
func (l *listener) readProxyHeader(raw net.Conn) (net.Conn, net.Addr, result) {
	remote := raw.RemoteAddr()
	if !l.trusts(remote) {
		if l.cfg.ProxyProtocol == ProxyRequire {
			return nil, nil, resultProxyHeader
		}
		return raw, remote, "" // a header from there is just not MQTT
	}
	r := bufio.NewReaderSize(raw, proxyBuffer)
	if _, err := r.Peek(1); err != nil {
		if res := silent(err); res != "" {
			return nil, nil, res
		}
		return nil, nil, resultHangup
	}
	header, err := proxyproto.Read(r)
	switch {
	case err == nil:
	case errors.Is(err, proxyproto.ErrNoProxyProtocol) && l.cfg.ProxyProtocol == ProxyAccept:
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, nil, resultTimeout
	default:
		return nil, nil, resultProxyHeader
	}
	if header != nil && !header.Command.IsLocal() && header.SourceAddr != nil {
		remote = header.SourceAddr
	}
	return bare(&bufferedConn{Conn: raw, r: r}), remote, ""
}

func (l *listener) trusts(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return false
	}
	ip := t.AddrPort().Addr().Unmap()
	for _, p := range l.trusted {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// bufferedConn gives back what was read together with a PROXY header.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (c *bufferedConn) Read(b []byte) (int, error) {
	if c.r.Buffered() > 0 {
		return c.r.Read(b)
	}
	return c.Conn.Read(b)
}

// NetConn returns the connection beneath.
func (c *bufferedConn) NetConn() net.Conn { return c.Conn }

// bare takes the wrapper off once it is empty.
func bare(c net.Conn) net.Conn {
	if b, ok := c.(*bufferedConn); ok && b.r.Buffered() == 0 {
		return b.Conn
	}
	return c
}
