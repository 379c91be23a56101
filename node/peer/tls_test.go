package peer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"turnout/fsm"
)

// authority issues certificates into a directory.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	var der []byte
	a.key, der = a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.cert = cert
	a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) sign(template *x509.Certificate) (*ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, der
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// issue makes a certificate with the DNS name.
func (a *authority) issue(file, name string) TLSConfig {
	a.t.Helper()
	key, der := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return TLSConfig{
		CertFile: a.write(file+".pem", "CERTIFICATE", der), KeyFile: a.write(file+".key", "EC PRIVATE KEY", private), CAFile: filepath.Join(a.dir, "ca.pem"),
	}
}

func TestTLSAndGossipKeys(t *testing.T) {
	a := newAuthority(t)
	keys := filepath.Join(t.TempDir(), "keys")
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	if err := os.WriteFile(keys, []byte("# first encrypts\n"+key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, 3)
	f.adjust = func(o *Options) {
		o.Config.TLS = a.issue(o.Name, RoleName)
		o.Config.GossipKeysFile = keys
	}
	for range 3 {
		f.add()
	}
	f.ready()
	g := f.except(leader(t, f.all...))[0]
	mustPropose(t, g, block("d"))

	stranger := func(c TLSConfig) *dialer {
		_, client, err := loadTLS(c)
		if err != nil {
			t.Fatal(err)
		}
		return &dialer{
			life: t.Context(), self: fsm.GatewayID(newUUID()), tls: client, timeout: 2 * time.Second, cluster: g.ClusterID,
			elsewhere: func(fsm.GatewayID, purpose) string { return "" },
		}
	}
	conn, err := stranger(a.issue("good", RoleName)).dial(t.Context(), g.self(), purposeRPC)
	if err != nil {
		t.Fatalf("certificate with the role: %v", err)
	}
	conn.Close()

	refused := func(what string, d *dialer, n float64) {
		t.Helper()
		if conn, err := d.dial(t.Context(), g.self(), purposeRPC); err == nil {
			conn.Close()
			t.Errorf("%s: accepted", what)
		}
		eventually(t, what+" counted", func() error {
			if have := value(t, g, "turnout_peer_handshakes_refused_total", map[string]string{"reason": "tls"}); have != n {
				return fmt.Errorf("%v", have)
			}
			return nil
		})
	}
	// Same authority, another role; loadTLS would not even start with such a certificate, so the dialer is given it by hand.
	device, role := a.issue("device", "device-7"), stranger(a.issue("good2", RoleName))
	role.tls.Certificates[0] = certificate(t, device)
	refused("certificate without the role", role, 1)
	wildcard := stranger(a.issue("good3", RoleName))
	wildcard.tls.Certificates[0] = certificate(t, a.issue("wildcard", "*.turnout"))
	refused("wildcard certificate", wildcard, 2)
	// The role, of another authority.
	foreign := stranger(a.issue("good4", RoleName))
	foreign.tls.Certificates[0] = certificate(t, newAuthority(t).issue("foreign", RoleName))
	refused("certificate of another authority", foreign, 3)
	// No TLS at all.
	plain := stranger(a.issue("good5", RoleName))
	plain.tls = nil
	refused("plain connection", plain, 4)

	if _, _, err := loadTLS(device); err == nil {
		t.Error("a gateway starts with a certificate without the role")
	}

	// A gateway that is kept out can say why.
	f.adjust = func(o *Options) {
		o.Config.TLS = newAuthority(t).issue(o.Name, RoleName)
		o.Config.GossipKeysFile = keys
	}
	out := f.add()
	eventually(t, "the reason of the one that is kept out", func() error {
		if s := out.Status(); !strings.Contains(s.Problem, "cannot join yet") || !strings.Contains(s.Problem, "tls") || s.ClusterID != "" {
			return fmt.Errorf("problem %q", s.Problem)
		}
		return nil
	})
}

func certificate(t *testing.T, c TLSConfig) tls.Certificate {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestDialerRefusesServerWithoutRole(t *testing.T) {
	a := newAuthority(t)
	f := newFleet(t, 1)
	f.adjust = func(o *Options) { o.Config.TLS = a.issue(o.Name, RoleName) }
	g := f.add()
	f.ready()
	_, client, err := loadTLS(newAuthority(t).issue("x", RoleName))
	if err != nil {
		t.Fatal(err)
	}
	d := dialer{life: t.Context(), self: "x", tls: client, timeout: time.Second, cluster: g.ClusterID, elsewhere: func(fsm.GatewayID, purpose) string { return "" }}
	if _, err := d.dial(t.Context(), g.self(), purposeRPC); err == nil {
		t.Error("a gateway of another authority was believed")
	}
}

func TestGossipKeysFile(t *testing.T) {
	dir := t.TempDir()
	good := base64.StdEncoding.EncodeToString(make([]byte, 16))
	for _, c := range []struct {
		name, text string
		mode       os.FileMode
		ok         bool
	}{
		{"two keys", good + "\n" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n", 0o600, true},
		{"open to others", good + "\n", 0o644, false},
		{"empty", "\n# none\n", 0o600, false},
		{"not base64", "!\n", 0o600, false},
		{"wrong length", "YWJj\n", 0o600, false},
	} {
		path := filepath.Join(dir, c.name)
		if err := os.WriteFile(path, []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := loadKeys(path); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := loadKeys(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}
