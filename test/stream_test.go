package test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"turnout/api/client"
)

// TestBytesArriveAsSent sends random bytes both ways behind a CONNECT and its CONNACK and compares what arrived by hash.
func TestBytesArriveAsSent(t *testing.T) {
	w := newWorld(t, 1, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	if _, err := w.operator().PutCluster(w.ctx, "raw", client.ClusterSpec{Driver: "static", Addresses: map[string]string{"one": ln.Addr().String()}}, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.operator().PutPolicy(w.ctx, client.PolicyPut{Policy: "cluster", Cluster: "raw"}, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the node", func() (bool, string) {
		nodes, err := w.operator().Nodes(w.ctx, "raw")
		return len(nodes) == 1, fmt.Sprint(err)
	})
	const size = 8 << 20
	for i := range 4 {
		connect := []byte{0x10, 0x0f, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 3, 'r', 'a', byte('0' + i)}
		up, down := randomBytes(w.rand, size+w.rand.IntN(size)), randomBytes(w.rand, size+w.rand.IntN(size))
		var wg sync.WaitGroup
		var atBroker [sha256.Size]byte
		wg.Go(func() {
			c, err := ln.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(journeyLimit))
			got := make([]byte, len(connect))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, connect) {
				t.Errorf("broker read CONNECT % x (%v), device sent % x", got, err, connect)
				return
			}
			var both sync.WaitGroup
			both.Go(func() { writeChunks(t, c, append([]byte{0x20, 2, 0, 0}, down...), uint64(i)) })
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil {
				t.Errorf("broker: %v", err)
			}
			h.Sum(atBroker[:0])
			both.Wait()
		})
		c, err := net.Dial("tcp", w.anyGateway().MQTT())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(journeyLimit))
		var both sync.WaitGroup
		both.Go(func() {
			writeChunks(t, c, append(bytes.Clone(connect), up...), uint64(i)+100)
			_ = c.(*net.TCPConn).CloseWrite()
		})
		got, err := io.ReadAll(c)
		if err != nil {
			t.Errorf("device: %v", err)
		}
		both.Wait()
		wg.Wait()
		_ = c.Close()
		if want := append([]byte{0x20, 2, 0, 0}, down...); sha256.Sum256(got) != sha256.Sum256(want) {
			t.Errorf("device received %d bytes, the broker sent %d others", len(got), len(want))
		}
		if atBroker != sha256.Sum256(up) {
			t.Errorf("the broker received other bytes than the %d the device sent", len(up))
		}
	}
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// writeChunks writes b in pieces of random size and half-closes behind it.
func writeChunks(t *testing.T, c net.Conn, b []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	for len(b) > 0 {
		n := min(len(b), 1+r.IntN(1<<uint(r.IntN(17))))
		if _, err := c.Write(b[:n]); err != nil {
			t.Errorf("write: %v", err)
			return
		}
		b = b[n:]
	}
	if tc, ok := c.(*net.TCPConn); ok {
		_ = tc.CloseWrite()
	}
}
