package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// heldPort keeps a TCP port for one owner while that owner is not listening on it. The port is bound by a socket that
// never listens: a connection attempt is refused, the kernel gives the port to nobody else (not as the source port of
// an outgoing connection either), and a listener with SO_REUSEADDR, which Go always sets, may still open it.
type heldPort struct {
	address string
	once    sync.Once
	fd      int
}

// holdPort binds address, an IPv4 host:port; "" means a free port of 127.0.0.1.
func holdPort(address string) (*heldPort, error) {
	if address == "" {
		address = "127.0.0.1:0"
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil || !ap.Addr().Is4() {
		return nil, fmt.Errorf("parse address: %q is not an IPv4 address with a port", address)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	bound, err := bindReusable(fd, ap)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("hold port: %w", err)
	}
	return &heldPort{address: bound, fd: fd}, nil
}

// bindReusable binds fd to ap and returns the address the kernel settled on.
func bindReusable(fd int, ap netip.AddrPort) (string, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return "", err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}); err != nil {
		return "", err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", err
	}
	in4, ok := name.(*unix.SockaddrInet4)
	if !ok {
		return "", fmt.Errorf("unexpected socket family %T", name)
	}
	return netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port)).String(), nil
}

// listen opens a listener on the held port.
func (p *heldPort) listen() (net.Listener, error) {
	ln, err := net.Listen("tcp4", p.address)
	if err != nil {
		return nil, fmt.Errorf("listen tcp: %w", err)
	}
	return ln, nil
}

// release gives the port back. It is idempotent.
func (p *heldPort) release() {
	p.once.Do(func() { _ = unix.Close(p.fd) })
}

// Ports below the kernel's default ephemeral range (32768 and up), so that no outgoing connection takes one of them
// between the choice and the use.
const (
	freePortLow  = 20000
	freePortHigh = 32000
)

// FreePorts returns n distinct TCP ports that were free on 127.0.0.1 a moment ago. They are not held: another process
// may bind one before its user does. The race is small, since the ports lie outside the range from which the kernel
// serves outgoing connections and port 0, and the choice is random; a caller that loses it sees a bind error.
func FreePorts(n int) ([]int, error) {
	ports := make([]int, 0, n)
	taken := make(map[int]bool, n)
	for tries := 0; len(ports) < n; tries++ {
		if tries > 200+20*n {
			return nil, fmt.Errorf("find ports: only %d of %d are free", len(ports), n)
		}
		port := freePortLow + rand.IntN(freePortHigh-freePortLow)
		if taken[port] {
			continue
		}
		taken[port] = true
		ln, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		_ = ln.Close()
		ports = append(ports, port)
	}
	return ports, nil
}
