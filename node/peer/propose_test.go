package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// fakeLeader accepts the handshake and then does with the connection what behave says.
func fakeLeader(t *testing.T, behave func(net.Conn)) target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(limit))
				if _, err := readHello(c); err != nil {
					t.Errorf("hello: %v", err)
				}
				behave(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); done.Wait() })
	return target{fsm.GatewayID(newUUID()), l.Addr().String()}
}

// What was certainly not proposed may be tried again; whatever may have been is unknown, and is sent once.
func TestForwardOutcomes(t *testing.T) {
	g := start(t, 1, 0).all[0]
	entry, err := fsm.Encode(block("d"))
	if err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	httpReply := func(status, body string) func(net.Conn) {
		return func(c net.Conn) {
			writeAnswer(c, accepted)
			c.Read(make([]byte, 4096))
			io.WriteString(c, "HTTP/1.1 "+status+"\r\nConnection: close\r\n\r\n"+body)
		}
	}
	refusal := func(code fsm.Code) string {
		b, err := wireEncoding.Marshal(rpcError{code, "x"})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct {
		name    string
		leader  target
		unknown bool
	}{
		{"nobody listens", target{"x", closed.Addr().String()}, false},
		{"handshake refused", fakeLeader(t, func(c net.Conn) { writeAnswer(c, refusedBusy) }), false},
		{"closed in the handshake", fakeLeader(t, func(net.Conn) {}), false},
		{"not the leader", fakeLeader(t, httpReply("409 Conflict", refusal(fsm.CodeNoLeader))), false},
		{"closed after the handshake", fakeLeader(t, func(c net.Conn) { writeAnswer(c, accepted); c.Read(make([]byte, 1)) }), true},
		{"closed before the answer", fakeLeader(t, func(c net.Conn) { writeAnswer(c, accepted); c.Read(make([]byte, 4096)) }), true},
		{"the leader does not know", fakeLeader(t, httpReply("409 Conflict", refusal(fsm.CodeUnknown))), true},
		{"garbage", fakeLeader(t, httpReply("200 OK", "\xff\xff")), true},
		{"server error", fakeLeader(t, httpReply("500 Internal Server Error", "")), true},
		{"silence", fakeLeader(t, func(c net.Conn) { writeAnswer(c, accepted); io.Copy(io.Discard, c) }), true},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		_, err := g.forward(ctx, c.leader, entry)
		cancel()
		if errors.Is(err, fsm.ErrUnknown) != c.unknown || errors.Is(err, errNotProposed) == c.unknown {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestRefusedCommands(t *testing.T) {
	g := start(t, 1, 0).all[0]
	if _, err := g.Propose(t.Context(), &fsm.RemoveDevices{}); !errors.Is(err, fsm.ErrInvalid) {
		t.Errorf("invalid command: %v", err)
	}
	res, err := g.Propose(t.Context(), &fsm.RemoveCluster{Name: "west"})
	if !errors.Is(err, fsm.ErrNotFound) || res.Index == 0 || g.tables.Index() < res.Index {
		t.Errorf("refusal of the tables: %+v, %v", res, err)
	}
	g.stop()
	if _, err := g.Propose(t.Context(), block("d")); !errors.Is(err, fsm.ErrNoLeader) {
		t.Errorf("after Close: %v", err)
	}
}

// A leader that cannot commit reports the outcome as unknown, and forgets nobody who waits.
func TestUncommittedIsUnknown(t *testing.T) {
	f := newFleet(t, 3)
	f.adjust = func(o *Options) {
		o.Timing.Lease, o.Timing.Heartbeat, o.Timing.Election = 2*time.Second, 2*time.Second, 2*time.Second
	}
	for range 3 {
		f.add()
	}
	f.ready()
	first := leader(t, f.all...)
	for _, g := range f.except(first) {
		g.stop()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if !first.IsLeader() {
		t.Fatal("the lease is over already")
	}
	_, err := first.Propose(ctx, block("d"))
	if !errors.Is(err, fsm.ErrUnknown) {
		t.Errorf("Propose: %v", err)
	}
	if n := value(t, first, "turnout_raft_proposals_total", map[string]string{"result": "unknown"}); n != 1 {
		t.Errorf("%v counted as unknown", n)
	}
}

// A gateway that does not answer must not hold up Close until its call runs out.
func TestCloseWithUnansweredCall(t *testing.T) {
	g := start(t, 1, 0).all[0]
	called := make(chan struct{}, 100)
	silent := fakeLeader(t, func(c net.Conn) {
		writeAnswer(c, accepted)
		c.Read(make([]byte, 1))
		called <- struct{}{}
		io.Copy(io.Discard, c) // until it is cut
	})
	if err := g.raft.Load().AddNonvoter(raft.ServerID(silent.id), silent.server(), 0, time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	<-called
	<-called // replication and heartbeat
	began := time.Now()
	g.stop()
	if took := time.Since(began); took >= rpcTimeout {
		t.Errorf("Close took %v", took)
	}
}

// Nor must a stalled transfer.
func TestCloseDuringStalledSnapshot(t *testing.T) {
	g := start(t, 1, 0).all[0]
	d := dialer{life: t.Context(), self: fsm.GatewayID(newUUID()), timeout: time.Second, cluster: g.ClusterID, elsewhere: func(fsm.GatewayID, purpose) string { return "" }}
	listener := newHandover(raftAddress("x"))
	s := newStream(t.Context(), listener, &d)
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Logger: newRaftLogger(g.logger), Stream: s, MaxPool: 1, Timeout: time.Minute})
	stalled, release := io.Pipe()
	var sending sync.WaitGroup
	sending.Go(func() {
		var resp raft.InstallSnapshotResponse
		if err := transport.InstallSnapshot(raft.ServerID(g.ID()), g.self().server(), &raft.InstallSnapshotRequest{
			SnapshotVersion: 1, Term: 99, Size: 1 << 20, Configuration: raft.EncodeConfiguration(raft.Configuration{}), RPCHeader: raft.RPCHeader{ProtocolVersion: 3},
		}, &resp, stalled); err == nil {
			t.Error("the snapshot was installed")
		}
	})
	release.Write(make([]byte, 512<<10)) // beyond every buffer on the way, so the receiver has begun
	eventually(t, "receiver busy", func() error {
		if g.raft.Load().CurrentTerm() != 99 {
			return errors.New("not yet")
		}
		return nil
	})
	g.stop()
	release.CloseWithError(errors.New("over"))
	sending.Wait()
	transport.Close()
	transport.CloseStreams()
	s.cut()
}

// What another gateway sends is checked like what is proposed here: an entry that the tables could not take does not get into the log,
// where one from a later release would stop the tables of every gateway.
func TestForwardedEntryIsChecked(t *testing.T) {
	g := start(t, 1, 0).all[0]
	body, err := wireEncoding.Marshal(fsm.PutDevices{Changes: []fsm.DeviceChange{{Key: ""}}})
	if err != nil {
		t.Fatal(err)
	}
	last := g.raft.Load().LastIndex()
	for _, c := range []struct {
		name  string
		entry []byte
		code  fsm.Code
	}{
		{"empty", nil, fsm.CodeInvalid},
		{"envelope of a later release", []byte{99, 0, 1, 0xa0}, fsm.CodeUnsupported},
		{"kind of a later release", []byte{1, 0xff, 0xff, 0xa0}, fsm.CodeUnsupported},
		{"too long", append([]byte{1, 0, byte(fsm.KindPutDevices)}, make([]byte, fsm.MaxCommandBytes)...), fsm.CodeUnsupported},
		{"damaged", []byte{1, 0, byte(fsm.KindPutDevices), 0xff}, fsm.CodeInvalid},
		{"breaks a bound", append([]byte{1, 0, byte(fsm.KindPutDevices)}, body...), fsm.CodeInvalid},
	} {
		_, err := g.forward(within(t, limit), g.self(), c.entry)
		if fsm.CodeOf(err) != c.code || errors.Is(err, errNotProposed) {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
	if now := g.raft.Load().LastIndex(); now != last {
		t.Errorf("the log went from %d to %d", last, now)
	}
	if err := g.tables.Halted(); err != nil {
		t.Fatalf("tables stopped: %v", err)
	}
	mustPropose(t, g, block("d"))
}

// Tables that stopped at an entry of a later release cannot tell what becomes of the ones behind it: their gateway proposes nothing.
func TestStoppedTablesProposeNothing(t *testing.T) {
	f := newFleet(t, 1)
	f.adjust = func(o *Options) { o.Timing.Hold = 100 * time.Millisecond }
	g := f.add()
	f.ready()
	last := g.raft.Load().LastIndex()
	g.tables.Apply(&raft.Log{Type: raft.LogCommand, Index: last + 1, Data: []byte{99, 0, 1, 0xa0}})
	if g.tables.Halted() == nil {
		t.Fatal("the tables go on")
	}
	if _, err := g.Propose(within(t, limit), block("d")); !errors.Is(err, fsm.ErrNoLeader) {
		t.Errorf("Propose: %v", err)
	}
	if g.Ready() || g.statusReply().Complete {
		t.Error("ready, or complete")
	}
	if now := g.raft.Load().LastIndex(); now != last {
		t.Errorf("the log went from %d to %d", last, now)
	}
}
