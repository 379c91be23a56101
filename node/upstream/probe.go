package upstream

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"sync"
	"time"

	"turnout/fsm"
)

const (
	probeTimeout  = 3 * time.Second
	probeParallel = 16
)

// probeMQTT asks the node at address whether it still serves MQTT: it connects, sends a 3.1.1 CONNECT with a clean session and a
// client identifier that no device has, and waits for a CONNACK (MQTT 3.1.1 §3.2). A refusing CONNACK is an answer too.
func probeMQTT(ctx context.Context, g *Guard, address string) ProbeResult {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := g.DialContext(ctx, "tcp", address)
	if ClassOf(err) == ClassRefusedAddress {
		return ProbeRefused
	}
	if err != nil {
		return ProbeSilent
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(probeConnect()); err != nil {
		return ProbeSilent
	}
	var connack [4]byte
	if _, err := io.ReadFull(conn, connack[:]); err != nil {
		return ProbeSilent
	}
	// Fixed header 0x20, remaining length 2, acknowledge flags of which only session present may be set, return code.
	if connack[0] != 0x20 || connack[1] != 2 || connack[2] > 1 {
		return ProbeSilent
	}
	_, _ = conn.Write([]byte{0xE0, 0x00}) // DISCONNECT; the answer is known, whatever becomes of it
	return ProbeAnswered
}

// probeConnect returns a CONNECT of MQTT 3.1.1 (§3.1): protocol name, level 4, clean session, keep alive 10 s, client identifier of 22
// bytes, which every server must take (§3.1.3.1).
func probeConnect() []byte {
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails
	id := "turnout-probe-" + hex.EncodeToString(random[:])
	p := []byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 0x02, 0, 10, 0, byte(len(id))}
	return append(p, id...)
}

// probeAll probes the nodes, some at a time, and returns when all have a result.
func probeAll(ctx context.Context, g *Guard, nodes []fsm.Node) map[fsm.NodeName]ProbeResult {
	var (
		mu    sync.Mutex // guards out
		out   = make(map[fsm.NodeName]ProbeResult, len(nodes))
		wg    sync.WaitGroup
		slots = make(chan struct{}, probeParallel)
	)
	for _, n := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			r := probeMQTT(ctx, g, n.Address)
			mu.Lock()
			defer mu.Unlock()
			out[n.Name] = r
		})
	}
	wg.Wait()
	return out
}
