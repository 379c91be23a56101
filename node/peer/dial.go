package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"turnout/fsm"
)

// target is a gateway at an address. Its text form "<id>@<host:port>" is what Raft keeps as the server's address.
type target struct {
	id      fsm.GatewayID
	address string
}

func (t target) String() string             { return string(t.id) + "@" + t.address }
func (t target) server() raft.ServerAddress { return raft.ServerAddress(t.String()) }

func parseTarget(s string) (target, error) {
	id, address, ok := strings.Cut(s, "@")
	if !ok || id == "" {
		return target{}, errors.New("parse address: want <id>@<host:port>")
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return target{}, fmt.Errorf("parse address: %w", err)
	}
	return target{fsm.GatewayID(id), address}, nil
}

// unacknowledgedLimit is how long sent bytes may stay unacknowledged before the kernel gives a connection up. Without it a
// black-holed snapshot transfer would live for hours, because its deadline grows with its size.
const unacknowledgedLimit = 15 * time.Second

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3}

// socketOptions is the Control function of dialed and accepted sockets.
func socketOptions(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledgedLimit/time.Millisecond))
	}); e != nil {
		return e
	}
	return err
}

// dialer opens connections to other gateways' peer ports.
type dialer struct {
	life    context.Context // ends every dial; net/http takes the caller's context away
	self    fsm.GatewayID
	tls     *tls.Config   // nil: plain
	timeout time.Duration // of the whole handshake
	cluster func() string
	// elsewhere returns another address to try for a gateway, empty for none.
	elsewhere func(fsm.GatewayID, purpose) string
}

// dialError says that a connection was never established: nothing was sent that the other side could act on.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dial connects and makes the handshake. Names are resolved anew each time. When the gateway is not found at its address, the
// one that elsewhere knows is tried. The caller owns the connection; errors are of type *dialError.
func (d *dialer) dial(ctx context.Context, to target, why purpose) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	defer context.AfterFunc(d.life, cancel)()
	other := d.elsewhere(to.id, why)
	if other == to.address {
		other = ""
	}
	first := ctx
	if other != "" { // which gets its share of the time: an address that is gone often swallows everything
		half, cancel := context.WithTimeout(ctx, d.timeout/2)
		defer cancel()
		first = half
	}
	conn, err := d.attempt(first, to, why)
	if err == nil {
		return conn, nil
	}
	if other != "" {
		if conn, e := d.attempt(ctx, target{to.id, other}, why); e == nil {
			return conn, nil
		}
	}
	return nil, &dialError{fmt.Errorf("dial gateway: %w", err)}
}

func (d *dialer) attempt(ctx context.Context, to target, why purpose) (net.Conn, error) {
	nd := net.Dialer{KeepAliveConfig: keepAlive, Control: socketOptions}
	conn, err := nd.DialContext(ctx, "tcp", to.address)
	if err != nil {
		return nil, err
	}
	raw := conn
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	err = d.handshake(ctx, &conn, to, why)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// handshake wraps *conn in TLS if there is any, and introduces this gateway.
func (d *dialer) handshake(ctx context.Context, conn *net.Conn, to target, why purpose) error {
	if d.tls != nil {
		c := tls.Client(*conn, d.tls)
		*conn = c
		if err := c.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("handshake TLS: %w", err)
		}
	}
	if err := writeHello(*conn, hello{Cluster: d.cluster(), Source: d.self, Target: to.id, purpose: why}); err != nil {
		return err
	}
	return readAnswer(*conn)
}
