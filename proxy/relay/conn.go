package relay

import (
	"crypto/tls"
	"net"

	"golang.org/x/sys/unix"
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

// gone looks, without reading, whether the peer of c has ended its stream or broken the connection.
func gone(c net.Conn) (ended, broken bool) {
	t := TCP(c)
	if t == nil {
		return false, false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false, false
	}
	_ = raw.Control(func(fd uintptr) { // fails when c is closed: then somebody knows already
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(p, 0); n == 1 && err == nil {
			ended, broken = p[0].Revents&unix.POLLRDHUP != 0, p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
		}
	})
	return ended, broken
}
