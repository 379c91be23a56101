package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"turnout/api/client"
)

// TestHalfAConnectThenSilence holds connections open without ever completing a CONNECT: each is closed at its deadline, in order.
func TestHalfAConnectThenSilence(t *testing.T) {
	d := newDoorstep(t)
	whole := connect5(2, nil, text("silent"))
	limit := 8 * time.Second // the deadline of this gateway, not the 10 s of the default
	for _, tt := range []struct {
		name string
		send []byte
	}{
		{"nothing at all", nil},
		{"one byte", whole[:1]},
		{"half a length", []byte{0x10, 0xFF, 0xFF, 0xFF}},
		{"fixed header", whole[:2]},
		{"half", whole[:len(whole)/2]},
		{"all but one byte", whole[:len(whole)-1]},
		{"the largest that is allowed, announced", []byte{0x10, 0xFC, 0xFF, 0x03, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := d.talk(d.fleet.Gateways()[hasty].MQTT(), tt.send, false, limit); err != nil || len(got) > 0 {
				t.Errorf("answer % x, %v; want the end of the stream alone", got, err)
			}
			d.counted(t, hasty, "timeout")
		})
	}
	t.Run("a byte now and then buys no time", func(t *testing.T) {
		c, err := net.Dial("tcp", d.fleet.Gateways()[hasty].MQTT())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(limit))
		closed := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			closed <- err
		}()
		pace := time.NewTicker(20 * time.Millisecond)
		defer pace.Stop()
		slow := connect5(2, nil, text(strings.Repeat("s", 60_000)))
		for {
			select {
			case err := <-closed:
				var late net.Error
				if err == nil || errors.As(err, &late) && late.Timeout() {
					t.Errorf("not closed at the deadline: %v", err)
				}
				d.counted(t, hasty, "timeout")
				return
			case <-pace.C:
				if _, err := c.Write(slow[:1]); err == nil {
					slow = slow[1:]
				}
			}
		}
	})
	d.accepted(t, hasty, whole)
}

// TestAnnouncedBytesCostNothing opens 2000 connections that announce the largest CONNECT and send one byte of it. They cost far less than
// what they announce, devices are served beside them, and at the deadline every one is gone, its goroutine too.
func TestAnnouncedBytesCostNothing(t *testing.T) {
	const (
		crowd = 2000
		each  = 32 << 10 // bytes of heap and stacks, this test's side of the connection included; half of what is announced
	)
	w := newWorld(t, 1, nil)
	broker := newTakingBroker(t)
	w.static("taking", broker.address())
	w.policy(client.PolicyPut{Policy: "cluster", Cluster: "taking"})
	gateway := w.fleet.Gateways()[0]
	before := memoryInUse()
	conns := make([]net.Conn, crowd)
	for i := range conns {
		c, err := net.Dial("tcp", gateway.MQTT())
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c
		t.Cleanup(func() { _ = c.Close() })
		if _, err := c.Write([]byte{0x10, 0xFC, 0xFF, 0x03, 0}); err != nil {
			t.Fatal(err)
		}
	}
	w.eventually("every connection to be held", func() (bool, string) {
		n := handshakes()
		return n == crowd, fmt.Sprint(n, " are")
	})
	if used := memoryInUse() - before; used > crowd*each {
		t.Errorf("%d connections cost %d bytes each", crowd, used/crowd)
	} else {
		t.Logf("%d bytes for each connection", used/crowd)
	}
	if got, err := w.talk(gateway.MQTT(), connect5(2, nil, text("beside them")), true, 20*time.Second); err != nil || !bytes.Equal(got, connack5(0)) {
		t.Errorf("a device beside the crowd: % x, %v", got, err)
	}
	for i, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
			t.Fatalf("connection %d: % x, %v; want the end of the stream alone", i, got, err)
		}
	}
	w.soon(t, "no goroutine left of them", func() (bool, string) {
		n := handshakes()
		return n == 0, fmt.Sprint(n, " goroutines")
	})
	w.soon(t, "one count each", func() (bool, string) {
		got, err := w.connectResults(gateway)
		return maps.Equal(got, map[string]int{"timeout": crowd, "accepted": 1}), fmt.Sprint(got, err)
	})
}

// handshakes counts the goroutines of this process that serve a connection up to its CONNACK.
func handshakes() int {
	for size := 1 << 20; ; size *= 2 {
		stacks := make([]byte, size)
		if n := runtime.Stack(stacks, true); n < size {
			return bytes.Count(stacks[:n], []byte("proxy.(*Gateway).serve(0x"))
		}
	}
}

// memoryInUse is what is left after a collection.
func memoryInUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
