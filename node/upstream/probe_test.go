package upstream

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"turnout/fsm"
)

// node is a TCP server that answers the first bytes of each connection with a fixed text.
func node(t *testing.T, answer string, got chan<- []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serveProbe(conn, answer, got)
		}
	}()
	return l.Addr().String()
}

func serveProbe(conn net.Conn, answer string, got chan<- []byte) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	first := make([]byte, 36)
	if _, err := io.ReadFull(conn, first); err != nil {
		return
	}
	_, _ = io.WriteString(conn, answer)
	rest, _ := io.ReadAll(conn)
	if got != nil {
		got <- append(first, rest...)
	}
}

func TestProbe(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	tests := []struct {
		name    string
		address string
		want    ProbeResult
	}{
		{"accepts", node(t, "\x20\x02\x00\x00", nil), ProbeAnswered},
		{"refuses", node(t, "\x20\x02\x00\x05", nil), ProbeAnswered},
		{"session present", node(t, "\x20\x02\x01\x00", nil), ProbeAnswered},
		{"HTTP", node(t, "HTTP/1.1 400 Bad Request\r\n\r\n", nil), ProbeSilent},
		{"reserved flags", node(t, "\x20\x02\x02\x00", nil), ProbeSilent},
		{"another length", node(t, "\x20\x03\x00\x00\x00", nil), ProbeSilent},
		{"another packet", node(t, "\xd0\x00\x00\x00", nil), ProbeSilent},
		{"half a CONNACK then closed", closing(t, "\x20\x02"), ProbeSilent},
		{"closed without a word", closing(t, ""), ProbeSilent},
		{"nobody listens", closed.Addr().String(), ProbeSilent},
		{"no address", "", ProbeSilent},
		{"not allowed", "169.254.169.254:1883", ProbeRefused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := probeMQTT(t.Context(), loopback(t), tt.address); got != tt.want {
				t.Fatalf("got %d, want %d", got, tt.want)
			}
		})
	}
	t.Run("accepts and says nothing", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if got := probeMQTT(ctx, loopback(t), node(t, "", nil)); got != ProbeSilent {
			t.Fatalf("got %d", got)
		}
	})
}

// closing returns the address of a server that writes and closes.
func closing(t *testing.T, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, text)
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

// What the probe sends, byte by byte.
func TestProbeBytes(t *testing.T) {
	got := make(chan []byte, 2)
	address := node(t, "\x20\x02\x00\x00", got)
	ids := map[string]bool{}
	for range 2 {
		if probeMQTT(t.Context(), loopback(t), address) != ProbeAnswered {
			t.Fatal("no answer")
		}
		b := <-got
		want := []byte{
			0x10, 34, // CONNECT, remaining length
			0, 4, 'M', 'Q', 'T', 'T', 4, // protocol name and level of 3.1.1
			0x02,  // clean session
			0, 10, // keep alive
			0, 22, // length of the client identifier
		}
		if !bytes.HasPrefix(b, want) || !strings.HasPrefix(string(b[14:]), "turnout-probe-") || !bytes.HasSuffix(b, []byte{0xE0, 0}) || len(b) != 38 {
			t.Fatalf("got % x", b)
		}
		ids[string(b[14:36])] = true
	}
	if len(ids) != 2 {
		t.Error("two probes have the same client identifier")
	}
}

func TestProbeAll(t *testing.T) {
	up, down := node(t, "\x20\x02\x00\x00", nil), closing(t, "")
	var nodes []fsm.Node
	for i := range 2 * probeParallel {
		n := fsm.Node{ID: fsm.NodeID(i + 1), Name: fsm.NodeName(rune('a' + i)), Address: up}
		if i%2 == 1 {
			n.Address = down
		}
		nodes = append(nodes, n)
	}
	got := probeAll(t.Context(), loopback(t), nodes)
	for i, n := range nodes {
		if want := []ProbeResult{ProbeAnswered, ProbeSilent}[i%2]; got[n.Name] != want {
			t.Errorf("node %d: got %d, want %d", i, got[n.Name], want)
		}
	}
}
