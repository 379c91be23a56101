package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// RoleName is the DNS name that a certificate must carry to speak on the peer port. It names a role, not a host: other
// certificates of the same authority, a device's or an operator's, are refused.
const RoleName = "peer.turnout"

// loadTLS reads the files and returns the configurations of both directions, nil without TLS.
func loadTLS(c TLSConfig) (server, client *tls.Config, err error) {
	if !c.Enabled() {
		return nil, nil, nil
	}
	cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("load certificate: %w", err)
	}
	pem, err := readBounded(c.CAFile, 1<<20)
	if err != nil {
		return nil, nil, fmt.Errorf("load authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("load authority: no certificate in %s", c.CAFile)
	}
	if cert.Leaf == nil || !slices.Contains(cert.Leaf.DNSNames, RoleName) {
		return nil, nil, fmt.Errorf("load certificate: %s does not carry the DNS name %s", c.CertFile, RoleName)
	}
	server = &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              roots,
		VerifyConnection:       verifyRole,
		SessionTicketsDisabled: true,
	}
	client = &tls.Config{
		MinVersion:       tls.VersionTLS13,
		Certificates:     []tls.Certificate{cert},
		RootCAs:          roots,
		ServerName:       RoleName,
		VerifyConnection: verifyRole,
	}
	return server, client, nil
}

// verifyRole runs after the chain was verified. The name must stand there literally: a wildcard is not a role.
func verifyRole(s tls.ConnectionState) error {
	if len(s.VerifiedChains) == 0 || len(s.PeerCertificates) == 0 {
		return errors.New("no verified certificate")
	}
	if !slices.Contains(s.PeerCertificates[0].DNSNames, RoleName) {
		return fmt.Errorf("certificate does not carry the DNS name %s", RoleName)
	}
	return nil
}
