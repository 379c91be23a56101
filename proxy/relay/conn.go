package relay

import (
	"crypto/tls"
	"net"
)

// TCP finds the TCP connection at the bottom of c, which may be wrapped by TLS or by anything else that has a NetConn
// method. It returns nil when there is none.
func TCP(c net.Conn) *net.TCPConn {
	for {
		switch t := c.(type) {
		case *net.TCPConn:
			return t
		case interface{ NetConn() net.Conn }:
			c = t.NetConn()
		default:
			return nil
		}
	}
}

// CloseWrite ends the stream towards the peer and leaves the other direction open: TLS close_notify where there is TLS
// (RFC 8446 §6.1), then the half-close of TCP. A connection without a half-close is left as it is.
func CloseWrite(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		_ = t.CloseWrite() // the peer may be gone; the half-close below and the close later still have to happen
	}
	if t := TCP(c); t != nil {
		_ = t.CloseWrite()
	}
}

// Reset closes c so that the peer sees a reset, and what has not been sent yet is dropped.
func Reset(c net.Conn) {
	if t := TCP(c); t != nil {
		_ = t.SetLinger(0)
		_ = t.Close() // below TLS: no close_notify may make it look like an end in order
	}
	_ = c.Close()
}
