package peer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

func helloBytes(t testing.TB, h hello) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeHello(&b, h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestHello(t *testing.T) {
	want := hello{Cluster: newUUID(), Source: fsm.GatewayID(newUUID()), Target: fsm.GatewayID(newUUID()), purpose: purposeRaft}
	good := helloBytes(t, want)
	// What follows belongs to Raft: not a byte of it may be read.
	r := bytes.NewReader(append(bytes.Clone(good), "raft"...))
	got, err := readHello(iotest.OneByteReader(r))
	if err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "raft" {
		t.Errorf("left %q", rest)
	}
	for n := range good {
		if _, err := readHello(bytes.NewReader(good[:n])); err == nil {
			t.Errorf("accepted after %d bytes", n)
		}
	}
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
		want   refusal
	}{
		{"HTTP", func([]byte) []byte { return []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n") }, refusedMalformed},
		{"version", func(b []byte) []byte { b[7] = 2; return b }, refusedVersion},
		{"purpose 0", func(b []byte) []byte { b[8] = 0; return b }, refusedPurpose},
		{"purpose 3", func(b []byte) []byte { b[8] = 3; return b }, refusedPurpose},
		{"length", func(b []byte) []byte { b[9], b[10] = 0xff, 0xff; return b }, refusedMalformed},
		{"body", func(b []byte) []byte { b[11] = 0xff; return b }, refusedMalformed},
		{"no target", func([]byte) []byte { return helloBytes(t, hello{Source: "a", purpose: purposeRPC}) }, refusedMalformed},
		{"no source", func([]byte) []byte { return helloBytes(t, hello{Target: "a", purpose: purposeRPC}) }, refusedMalformed},
		{"long id", func([]byte) []byte {
			return helloBytes(t, hello{Source: "a", Target: fsm.GatewayID(strings.Repeat("x", 65)), purpose: purposeRPC})
		}, refusedMalformed},
	} {
		_, err := readHello(bytes.NewReader(c.change(bytes.Clone(good))))
		var refused *refusedError
		if !errors.As(err, &refused) || refused.reason != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if err := writeHello(io.Discard, hello{Cluster: strings.Repeat("x", 2000)}); err == nil {
		t.Error("wrote a hello beyond the limit")
	}
}

func FuzzReadHello(f *testing.F) {
	f.Add(helloBytes(f, hello{Cluster: newUUID(), Source: "a", Target: "b", purpose: purposeRaft}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{'T', 'R', 'N', 'P', 'E', 'E', 'R', 1, 1, 3, 0xf5, 0xbf})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := readHello(r)
		if read := len(b) - r.Len(); read > helloHeaderBytes+maxHelloBytes {
			t.Fatalf("read %d bytes", read)
		}
		if err != nil {
			return
		}
		if h.Source == "" || h.Target == "" || h.purpose != purposeRaft && h.purpose != purposeRPC {
			t.Fatalf("accepted %+v", h)
		}
		// What is accepted can be written and read again.
		again, err := readHello(bytes.NewReader(helloBytes(t, h)))
		if err != nil || again != h {
			t.Fatalf("%+v became %+v: %v", h, again, err)
		}
	})
}

// knock sends bytes to a peer port and returns everything that comes back until the port closes.
func knock(t *testing.T, address string, b []byte) []byte {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("not closed: %v", err)
	}
	return answer
}

func TestPortRefuses(t *testing.T) {
	f := start(t, 1, 0)
	g := f.all[0]
	source := fsm.GatewayID(newUUID())
	other := fsm.GatewayID(newUUID())
	foreign := newUUID()
	for _, c := range []struct {
		name string
		send []byte
		want refusal
	}{
		{"garbage", bytes.Repeat([]byte{0xff}, 300), refusedMalformed},
		{"HTTP", []byte("POST /v1/propose HTTP/1.1\r\n\r\n"), refusedMalformed},
		{"Raft for another gateway", helloBytes(t, hello{Cluster: g.ClusterID(), Source: source, Target: other, purpose: purposeRaft}), refusedTarget},
		{"RPC for another gateway", helloBytes(t, hello{Cluster: g.ClusterID(), Source: source, Target: other, purpose: purposeRPC}), refusedTarget},
		{"Raft of another cluster", helloBytes(t, hello{Cluster: foreign, Source: source, Target: g.ID(), purpose: purposeRaft}), refusedCluster},
		{"RPC of another cluster", helloBytes(t, hello{Cluster: foreign, Source: source, Target: g.ID(), purpose: purposeRPC}), refusedCluster},
		{"Raft of no cluster", helloBytes(t, hello{Source: source, Target: g.ID(), purpose: purposeRaft}), refusedCluster},
		{"silence", nil, refusedTimeout},
		{"half a hello", helloMagic[:], refusedTimeout},
	} {
		labels := map[string]string{"reason": c.want.String()}
		before := value(t, g, "turnout_peer_handshakes_refused_total", labels)
		answer := knock(t, g.Addr(), c.send)
		eventually(t, c.name+" counted", func() error {
			if n := value(t, g, "turnout_peer_handshakes_refused_total", labels); n != before+1 {
				return fmt.Errorf("%v", n-before)
			}
			return nil
		})
		if c.want == refusedTimeout {
			if len(answer) > 0 {
				t.Errorf("%s: answered % x", c.name, answer)
			}
			continue
		}
		var refused *refusedError
		if err := readAnswer(bytes.NewReader(answer)); !errors.As(err, &refused) || refused.reason != c.want {
			t.Errorf("%s: % x (%v), want %v", c.name, answer, err, c.want)
		}
	}
	// None of it disturbed anybody.
	mustPropose(t, g, block("d"))
}

func TestPortBoundsHandshakes(t *testing.T) {
	f := start(t, 1, 0)
	g := f.all[0]
	var silent []net.Conn
	for range maxHandshakes + 20 {
		c, err := net.Dial("tcp", g.Addr())
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	eventually(t, "refusals", func() error {
		if n := value(t, g, "turnout_peer_handshakes_refused_total", map[string]string{"reason": "busy"}); n == 0 {
			return errors.New("none")
		}
		return nil
	})
	for _, c := range silent {
		c.Close()
	}
}

// An empty gateway must not vote: its disk may have been a voter's.
func TestEmptyGatewayDoesNotVote(t *testing.T) {
	f := newFleet(t, 3)
	empty := f.add()
	voter := start(t, 1, 0).all[0]
	ctx := within(t, limit)
	for _, cluster := range []string{"", voter.ClusterID()} {
		d := dialer{life: ctx, self: voter.ID(), timeout: time.Second, cluster: func() string { return cluster }, elsewhere: func(fsm.GatewayID, purpose) string { return "" }}
		_, err := d.dial(ctx, empty.self(), purposeRaft)
		var refused *refusedError
		if !errors.As(err, &refused) || refused.reason != refusedNotAdmitted {
			t.Errorf("Raft connection to an empty gateway: %v", err)
		}
	}
	// Raft's own transport cannot ask it either.
	var answer raft.RequestVoteResponse
	err := voter.raft.Load().transport.RequestVote(raft.ServerID(empty.ID()), empty.self().server(), &raft.RequestVoteRequest{Term: 99}, &answer)
	if err == nil || answer.Granted {
		t.Errorf("vote: %+v, %v", answer, err)
	}
	// Calls for members are refused too, those that come before membership are not.
	var st statusReply
	if err := voter.client.call(ctx, empty.self(), pathStatus, struct{}{}, &st); err != nil || st.ID != empty.ID() || st.ClusterID != "" {
		t.Errorf("status: %+v, %v", st, err)
	}
	var w waitReply
	var rpc *rpcError
	if err := voter.client.call(ctx, empty.self(), pathWait, waitRequest{Index: 0, Wait: time.Second}, &w); !errors.As(err, &rpc) {
		t.Errorf("wait at an empty gateway: %v", err)
	}
	if err := empty.client.call(ctx, voter.self(), pathPropose, proposeRequest{Wait: time.Second}, &proposeReply{}); !errors.As(err, &rpc) {
		t.Errorf("write of a gateway that is no member: %v", err)
	}
}

func TestCallsRefuseBadBodies(t *testing.T) {
	f := start(t, 1, 0)
	g := f.all[0]
	ctx := within(t, limit)
	other := newRPCClient(&dialer{
		life: ctx, self: fsm.GatewayID(newUUID()), timeout: time.Second, cluster: g.ClusterID, elsewhere: func(fsm.GatewayID, purpose) string { return "" },
	})
	defer other.close()
	var rpc *rpcError
	if err := other.call(ctx, g.self(), pathPropose, proposeRequest{Entry: make([]byte, maxProposeBody), Wait: time.Second}, &proposeReply{}); !errors.As(err, &rpc) || rpc.Code != fsm.CodeInvalid {
		t.Errorf("huge body: %v", err)
	}
	if err := other.call(ctx, g.self(), pathWait, "not a request", &waitReply{}); !errors.As(err, &rpc) || rpc.Code != fsm.CodeInvalid {
		t.Errorf("bad body: %v", err)
	}
	if err := other.call(ctx, g.self(), pathCommit, bootstrapRecord{Cluster: "x"}, &commitReply{}); !errors.As(err, &rpc) || rpc.Code != fsm.CodeInvalid {
		t.Errorf("bad record: %v", err)
	}
	if err := other.call(ctx, g.self(), pathJoin, joinRequest{ID: fsm.GatewayID(newUUID()), Address: "127.0.0.1:1"}, &joinReply{}); !errors.As(err, &rpc) {
		t.Errorf("join for another gateway: %v", err)
	}
	if err := other.call(ctx, g.self(), pathPropose, proposeRequest{Entry: []byte("??"), Wait: time.Second}, &proposeReply{}); !errors.As(err, &rpc) || rpc.Code != fsm.CodeInvalid {
		t.Errorf("garbage entry: %v", err)
	}
	// Only a member passes on what others asked for.
	stranger := newRPCClient(&dialer{
		life: ctx, self: fsm.GatewayID(newUUID()), timeout: time.Second, cluster: func() string { return "" }, elsewhere: func(fsm.GatewayID, purpose) string { return "" },
	})
	defer stranger.close()
	join := joinRequest{ID: g.ID(), Address: "127.0.0.1:1", HasData: true}
	if err := stranger.forward(ctx, g.self(), pathJoin, join, &joinReply{}); !errors.As(err, &rpc) || !strings.Contains(rpc.Message, "another gateway") {
		t.Errorf("forwarded by a stranger: %v", err)
	}
	// The leader knows its own address better than anybody else.
	if err := other.forward(ctx, g.self(), pathJoin, join, &joinReply{}); !errors.As(err, &rpc) || rpc.Code != fsm.CodeInvalid {
		t.Errorf("another address for the leader: %v", err)
	}
	if s := g.Status(); len(s.Servers) != 1 || s.Servers[0].Address != g.Addr() {
		t.Errorf("configuration %+v", s.Servers)
	}
}
