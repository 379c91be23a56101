package upstream

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// hook makes mochi check a password, keep old protocol versions apart and count what it sees.
type hook struct {
	mochi.HookBase
	password string
	version  byte // the only version taken, 0 for any
	connects atomic.Int64
	last     atomic.Pointer[packets.Packet]
	id       atomic.Pointer[string]
}

func (h *hook) ID() string { return "test" }

func (h *hook) Provides(b byte) bool {
	return bytes.IndexByte([]byte{mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnConnect, mochi.OnPublish}, b) >= 0
}

func (h *hook) OnConnectAuthenticate(_ *mochi.Client, p packets.Packet) bool {
	return h.password == "" || string(p.Connect.Username) == "gw" && string(p.Connect.Password) == h.password
}

func (h *hook) OnACLCheck(_ *mochi.Client, topic string, _ bool) bool {
	return topic != "devices/forbidden/commands"
}

func (h *hook) OnConnect(cl *mochi.Client, _ packets.Packet) error {
	h.connects.Add(1)
	h.id.Store(&cl.ID)
	if h.version != 0 && cl.Properties.ProtocolVersion != h.version {
		return packets.ErrUnsupportedProtocolVersion
	}
	return nil
}

func (h *hook) OnPublish(_ *mochi.Client, p packets.Packet) (packets.Packet, error) {
	h.last.Store(&p)
	if strings.Contains(p.TopicName, "quota") {
		return p, packets.ErrQuotaExceeded
	}
	return p, nil
}

// startBroker runs mochi on address until stop or the end of the test.
func startBroker(t *testing.T, address string, h *hook, config *tls.Config) (bound string, b *mochi.Server, stop func()) {
	t.Helper()
	b = mochi.New(&mochi.Options{InlineClient: true, Logger: quiet()})
	if err := b.AddHook(h, nil); err != nil {
		t.Fatal(err)
	}
	l := listeners.NewTCP(listeners.Config{ID: "l", Address: address, TLSConfig: config})
	if err := b.AddListener(l); err != nil {
		t.Fatal(err)
	}
	if err := b.Serve(); err != nil {
		t.Fatal(err)
	}
	closed := false
	stop = func() {
		if !closed {
			closed = true
			_ = b.Close()
		}
	}
	t.Cleanup(func() {
		if !closed {
			emptied(t, b)
		}
		stop()
	})
	return l.Address(), b, stop
}

// emptied waits until all clients but the inline one are gone: mochi's Close takes a read lock twice, and locks up for good when a
// client leaves in between.
func emptied(t *testing.T, b *mochi.Server) {
	t.Helper()
	waitFor(t, "broker without clients", func() bool { return b.Clients.Len() <= 1 })
}

// scripted is a broker that answers the CONNECT of each connection, in turn, with bytes, or closes it when there are none, and the packet
// behind it with puback, unless that is empty.
func scripted(t *testing.T, connacks []string, puback string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var conns []net.Conn
	t.Cleanup(func() {
		l.Close()
		<-done
		for _, c := range conns {
			c.Close()
		}
	})
	go func() {
		defer close(done)
		for _, connack := range connacks {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, conn)
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if skipPacket(conn) == 0 {
				continue
			}
			if connack == "" {
				_ = conn.Close()
				continue
			}
			_, _ = io.WriteString(conn, connack)
			if puback != "" {
				// A client may send a PINGREQ before its PUBLISH.
				kind := skipPacket(conn)
				for kind != 0 && kind>>4 != 3 {
					kind = skipPacket(conn)
				}
				_, _ = io.WriteString(conn, puback)
			}
		}
	}()
	return l.Addr().String()
}

// skipPacket reads one whole packet, which may come in several pieces, byte by byte so that it takes nothing of the next. It returns
// the first byte, 0 at the end of the connection.
func skipPacket(conn net.Conn) byte {
	r := oneByte{conn}
	kind, err := r.ReadByte()
	if err != nil {
		return 0
	}
	length, err := binary.ReadUvarint(r)
	if err != nil {
		return 0
	}
	if _, err := io.CopyN(io.Discard, conn, int64(length)); err != nil {
		return 0
	}
	return kind
}

type oneByte struct{ io.Reader }

func (r oneByte) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}
