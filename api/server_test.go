package api_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"turnout/api"
	"turnout/api/client"
	"turnout/fsm"
)

func TestConfig(t *testing.T) {
	full := api.TLSConfig{CertFile: "c", KeyFile: "k"}
	for _, tt := range []struct {
		name   string
		config api.Config
		want   []string // what the message must name; none: valid
	}{
		{"default", api.DefaultConfig(), nil},
		{"loopback names", api.Config{Address: "localhost:1"}, nil},
		{"loopback 6", api.Config{Address: "[::1]:1"}, nil},
		{"open", api.Config{Address: "0.0.0.0:8080"}, []string{"api.tls: {cert_file", "api.tokens_file: /", "api.insecure: true"}},
		{"open everywhere", api.Config{Address: ":8080", TLS: full}, []string{"api.tokens_file"}},
		{"open without TLS", api.Config{Address: "10.0.0.1:8080", TokensFile: "t"}, []string{"api.tls"}},
		{"a name", api.Config{Address: "gw-1:8080"}, []string{"api.tls", "api.tokens_file"}},
		{"safe", api.Config{Address: "0.0.0.0:8080", TLS: full, TokensFile: "t"}, nil},
		{"meant so", api.Config{Address: "0.0.0.0:8080", Insecure: true}, nil},
		{"half TLS", api.Config{Address: "127.0.0.1:1", TLS: api.TLSConfig{CertFile: "c"}}, []string{"api.tls", "cert_file and key_file"}},
		{"no port", api.Config{Address: "127.0.0.1"}, []string{"api.address"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.config.Validate()
			if (err == nil) != (tt.want == nil) {
				t.Fatalf("got %v", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("message lacks %q: %v", w, err)
				}
			}
		})
	}
	if _, err := api.New(api.Options{Config: api.Config{Address: "0.0.0.0:1"}}); err == nil {
		t.Error("New takes an invalid configuration")
	}
}

// writeCertificate puts a new self-signed certificate for 127.0.0.1 into dir.
func writeCertificate(t *testing.T, dir, name string) (files api.TLSConfig, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files = api.TLSConfig{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for path, b := range map[string][]byte{files.CertFile: certPEM, files.KeyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	return files, roots
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	files, roots := writeCertificate(t, dir, "first")
	g := newRig(t, withTokens(t), func(o *api.Options) { o.Config.TLS = files })
	status := func(roots *x509.CertPool) error {
		c, err := client.New(client.Options{URL: strings.Replace(g.url, "http:", "https:", 1), Token: readToken, TLS: &tls.Config{RootCAs: roots}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Status(t.Context())
		return err
	}
	if err := status(roots); err != nil {
		t.Fatal(err)
	}
	if _, err := tls.Dial("tcp", g.Addr().String(), &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil {
		t.Error("TLS 1.1 is taken")
	}
	_, second := writeCertificate(t, dir, "second")
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := status(second); err != nil {
		t.Errorf("after a reload: %v", err)
	}
	if err := os.WriteFile(files.KeyFile, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.Reload(); err == nil {
		t.Error("a broken key is taken")
	}
	if err := status(second); err != nil {
		t.Errorf("after a failed reload: %v", err)
	}
}

func TestSlowAndOversizedRequests(t *testing.T) {
	g := newRig(t)
	for name, tt := range map[string]struct {
		send string
		want string
	}{
		"header too large": {"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 32<<10) + "\r\n\r\n", "431"},
		"body cut short":   {"PUT /v1/devices/d HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{}", "400"},
		"announced size":   {"PUT /v1/devices/d HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1048577\r\n\r\n", "413"},
		"chunked size":     {"PUT /v1/devices/d HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n100010\r\n" + strings.Repeat(" ", 0x100010) + "\r\n0\r\n\r\n", "413"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", g.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			// The write may fail when the answer comes first.
			io.WriteString(conn, tt.send)
			conn.(*net.TCPConn).CloseWrite()
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if !strings.HasPrefix(resp.Status, tt.want) {
				t.Errorf("want %s, got %s", tt.want, resp.Status)
			}
		})
	}
}

func TestTooManyAtOnce(t *testing.T) {
	blocked := blockingProposer{entered: make(chan struct{}), release: make(chan struct{})}
	g := newRig(t, func(o *api.Options) { o.Proposer = blocked })
	var held sync.WaitGroup
	for range 256 {
		held.Go(func() { g.do(t, call{method: "PUT", path: "/v1/devices/d", body: "{}"}) })
		<-blocked.entered
	}
	status, h, body := g.do(t, call{method: "GET", path: "/v1/status"})
	if status != 503 || h.Get("Retry-After") != "1" || !strings.Contains(body, "overloaded") {
		t.Errorf("%d %s", status, body)
	}
	for _, probe := range []string{"/healthz", "/readyz"} {
		if status, _, _ := g.do(t, call{method: "GET", path: probe}); status != 200 {
			t.Errorf("%s: %d", probe, status)
		}
	}
	close(blocked.release)
	held.Wait()
	if status, _, _ := g.do(t, call{method: "GET", path: "/v1/status"}); status != 200 {
		t.Errorf("afterwards: %d", status)
	}
}

// blockingProposer holds writes until it is released.
type blockingProposer struct{ entered, release chan struct{} }

func (b blockingProposer) Propose(context.Context, fsm.Command) (fsm.Result, error) {
	b.entered <- struct{}{}
	<-b.release
	return fsm.Result{}, fsm.ErrNoLeader
}

func (blockingProposer) WaitAll(context.Context, uint64) ([]fsm.GatewayID, error) { return nil, nil }

func TestCloseBreaksOff(t *testing.T) {
	g := newRig(t)
	if err := g.Open(t.Context()); err == nil {
		t.Error("Open works twice")
	}
	conn, err := net.Dial("tcp", g.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "PUT /v1/devices/d HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{")
	wait(t, func() bool { // the request is being served
		resp, err := http.Get(g.url + "/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	})
	http.DefaultClient.CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Close(ctx); err == nil {
		t.Error("Close does not tell that it broke requests off")
	}
	if err := g.Close(t.Context()); err != nil {
		t.Errorf("second Close: %v", err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection is still open: %v", err)
	}
}
