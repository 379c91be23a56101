package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

// maxInboundPacket bounds a packet from a broker. A connection of ours subscribes to nothing, so all that comes is acknowledgements.
const maxInboundPacket = 64 << 10

const mqttWriteTimeout = 5 * time.Second

var errPacketTooLarge = errors.New("packet from the broker is too large")

// boundedConn follows the packet boundaries of what a broker sends and fails before a packet that is too large: MQTT clients make room
// for the length that a packet announces. It also bounds the time of each write, and its lock keeps packets of several
// writers apart (paho takes it when a connection has one).
type boundedConn struct {
	net.Conn
	sync.Mutex

	rest     int  // bytes of the current packet still to come
	inLength bool // between the first byte of a packet and the end of its remaining length
	digits   int  // bytes of the remaining length so far
	length   int
}

// Read implements net.Conn. It is called by one goroutine at a time.
func (c *boundedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for rest := b[:n]; len(rest) > 0; {
		if c.rest > 0 {
			k := min(c.rest, len(rest))
			c.rest -= k
			rest = rest[k:]
			continue
		}
		if !c.next(rest[0]) {
			return 0, errPacketTooLarge
		}
		rest = rest[1:]
	}
	return n, err
}

// next takes a byte of a fixed header (MQTT 5.0 §2.1); false when the packet is too large or its length too long.
func (c *boundedConn) next(b byte) bool {
	if !c.inLength {
		c.inLength, c.digits, c.length = true, 0, 0
		return true
	}
	c.length |= int(b&0x7f) << (7 * c.digits)
	c.digits++
	if b&0x80 != 0 {
		return c.digits < 4
	}
	c.inLength, c.rest = false, c.length
	return c.length <= maxInboundPacket
}

// Write implements net.Conn.
func (c *boundedConn) Write(b []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(mqttWriteTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// tlsDialer makes a TLS connection of a TCP connection. It owns conn only on success.
type tlsDialer func(ctx context.Context, conn net.Conn, serverName string) (net.Conn, error)

// systemTLS verifies the broker against the system's roots.
func systemTLS(ctx context.Context, conn net.Conn, serverName string) (net.Conn, error) {
	return startTLS(ctx, conn, &tls.Config{ServerName: serverName, MinVersion: tls.VersionTLS12})
}

func startTLS(ctx context.Context, conn net.Conn, config *tls.Config) (net.Conn, error) {
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, &Error{Class: ClassUnreachable, Detail: "no TLS connection"}
	}
	return secured, nil
}
