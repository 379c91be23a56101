package peer

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"turnout/fsm"
)

// WaitAll goes on asking for as long as its caller waits, whatever bound the gateway asked has of its own.
func TestWaitAllAsksAgain(t *testing.T) {
	g := start(t, 1, 0).all[0]
	var waits atomic.Int32
	slow := fakeLeader(t, func(c net.Conn) {
		writeAnswer(c, accepted)
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		io.Copy(io.Discard, r.Body)
		status, reply := "409 Conflict", any(rpcError{fsm.CodeTimeout, "x"})
		if r.URL.Path == pathWait && waits.Add(1) > 2 {
			status, reply = "200 OK", waitReply{Index: 1 << 40}
		}
		b, err := wireEncoding.Marshal(reply)
		if err != nil {
			t.Error(err)
		}
		io.WriteString(c, "HTTP/1.1 "+status+"\r\nConnection: close\r\n\r\n"+string(b))
	})
	res := mustPropose(t, g, &fsm.PutGateway{Gateway: fsm.Gateway{ID: slow.id, Name: "slow", PeerAddress: slow.address}})
	if lagging, err := g.WaitAll(within(t, limit), res.Index); err != nil || len(lagging) > 0 {
		t.Errorf("WaitAll: %v, %v after %d waits", lagging, err, waits.Load())
	}
}

// Only a leader whose own term has begun in its tables knows that they hold everything that was acknowledged.
func TestOnlyALeaderSaysComplete(t *testing.T) {
	f := start(t, 3, 0)
	first := leader(t, f.all...)
	eventually(t, "the leader's tables complete", func() error {
		if !first.statusReply().Complete {
			return io.ErrNoProgress
		}
		return nil
	})
	for _, g := range f.except(first) {
		if g.statusReply().Complete {
			t.Errorf("%s follows and says complete", g.opts.Name)
		}
	}
	// As in the first moments of a term: elected, and nothing of this term applied yet.
	first.established.Store(first.established.Load() - 1)
	if first.statusReply().Complete {
		t.Error("complete before its term has begun in the tables")
	}
}

// A gateway that came back elsewhere is found although its old address swallows everything.
func TestDialFallsBackInTime(t *testing.T) {
	hole, err := net.Listen("tcp", "127.0.0.1:0") // connects, and never says anything
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	there := fakeLeader(t, func(c net.Conn) { writeAnswer(c, accepted); io.Copy(io.Discard, c) })
	d := dialer{
		life: t.Context(), self: fsm.GatewayID(newUUID()), timeout: time.Second, cluster: func() string { return "" },
		elsewhere: func(fsm.GatewayID, purpose) string { return there.address },
	}
	conn, err := d.dial(t.Context(), target{there.id, hole.Addr().String()}, purposeRaft)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
