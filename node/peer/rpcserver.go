package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"turnout/fsm"
)

// Bounds of calls in progress. Waiting calls are counted apart, so that they cannot keep writes out.
const (
	maxCalls = 256
	maxWaits = 256
	// maxServerWait bounds how long a call may take, whatever the caller asks for.
	maxServerWait = 30 * time.Second
)

// rpcServer answers the calls of other gateways.
type rpcServer struct {
	peer  *Peer
	http  *http.Server
	calls chan struct{}
	waits chan struct{}
	done  sync.WaitGroup
}

type helloKey struct{}

func newRPCServer(p *Peer) *rpcServer {
	s := &rpcServer{peer: p, calls: make(chan struct{}, maxCalls), waits: make(chan struct{}, maxWaits)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathStatus, serve(s, s.calls, maxOtherBody, false, s.status))
	mux.HandleFunc("POST "+pathPrepare, serve(s, s.calls, maxOtherBody, false, s.prepare))
	mux.HandleFunc("POST "+pathCommit, serve(s, s.calls, maxOtherBody, false, s.commit))
	mux.HandleFunc("POST "+pathJoin, serve(s, s.calls, maxOtherBody, false, s.join))
	mux.HandleFunc("POST "+pathPropose, serve(s, s.calls, maxProposeBody, true, s.propose))
	mux.HandleFunc("POST "+pathWait, serve(s, s.waits, maxOtherBody, true, s.wait))
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      maxServerWait + 15*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          newLineLogger(p.logger),
		BaseContext:       func(net.Listener) context.Context { return p.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			pc, ok := c.(*peerConn)
			if !ok {
				return ctx
			}
			return context.WithValue(ctx, helloKey{}, pc.hello)
		},
	}
	return s
}

func (s *rpcServer) start(l net.Listener) {
	s.done.Add(1)
	go func() {
		defer s.done.Done()
		if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			s.peer.logger.Error("peer calls stopped", "error", err)
		}
	}()
}

// stop waits for Serve to return. The port has closed the connections by then and waited for their handlers, each of which ends
// with the Peer's context.
func (s *rpcServer) stop() {
	s.http.Close()
	s.done.Wait()
}

// call is a request with its sender.
type call[T any] struct {
	from      hello
	forwarded bool
	body      T
}

// serve makes a handler: it bounds the number of calls and the body, decodes, and encodes the reply or the refusal. Calls
// for members need a sender that introduced itself as one of this cluster.
func serve[Req, Reply any](s *rpcServer, slots chan struct{}, limit int64, members bool, f func(context.Context, call[Req]) (Reply, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var c call[Req]
		c.from, _ = r.Context().Value(helloKey{}).(hello)
		cluster := s.peer.ClusterID()
		member := cluster != "" && c.from.Cluster == cluster
		c.forwarded = member && r.Header.Get(headerForwarded) != "" // who is no member speaks for himself alone
		if members && !member {
			reply(w, http.StatusForbidden, &rpcError{fsm.CodeNoLeader, "not a member of this cluster"})
			return
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			reply(w, http.StatusServiceUnavailable, &rpcError{fsm.CodeNoLeader, "too many calls"})
			return
		}
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
		if err == nil {
			err = wireDecoding.Unmarshal(b, &c.body)
		}
		if err != nil {
			reply(w, http.StatusBadRequest, &rpcError{fsm.CodeInvalid, "body cannot be read"})
			return
		}
		out, err := f(r.Context(), c)
		if err != nil {
			var refused *rpcError
			if !errors.As(err, &refused) {
				refused = &rpcError{fsm.CodeOf(err), err.Error()}
			}
			reply(w, http.StatusConflict, refused)
			return
		}
		reply(w, http.StatusOK, out)
	}
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := wireEncoding.Marshal(v)
	if err != nil {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/cbor")
	w.WriteHeader(status)
	w.Write(b)
}

func (s *rpcServer) status(context.Context, call[struct{}]) (statusReply, error) {
	return s.peer.statusReply(), nil
}

func (s *rpcServer) propose(ctx context.Context, c call[proposeRequest]) (proposeReply, error) {
	p := s.peer
	ctx, cancel := context.WithTimeout(ctx, min(c.body.Wait, maxServerWait))
	defer cancel()
	node := p.raft.Load()
	if node == nil {
		return proposeReply{}, &rpcError{fsm.CodeNoLeader, "not a member"}
	}
	// Everything in the log is applied everywhere, so nobody's word is taken for what an entry holds.
	cmd, err := fsm.Decode(c.body.Entry)
	if err == nil {
		err = cmd.Validate()
	}
	if err != nil {
		var refused *fsm.Error
		if !errors.As(err, &refused) {
			refused = fsm.NewError(fsm.CodeInvalid, "", "entry cannot be checked")
		}
		return proposeReply{}, &rpcError{refused.Code, refused.Message}
	}
	// Only tried here: a forwarded command is never forwarded again.
	res, err := p.applyHere(ctx, node, c.body.Entry)
	if errors.Is(err, errNotProposed) {
		return proposeReply{}, &rpcError{fsm.CodeNoLeader, "not the leader"}
	}
	if err != nil {
		return proposeReply{}, err
	}
	b, err := fsm.MarshalResult(res)
	return proposeReply{Result: b}, err
}

func (s *rpcServer) wait(ctx context.Context, c call[waitRequest]) (waitReply, error) {
	ctx, cancel := context.WithTimeout(ctx, min(c.body.Wait, maxServerWait))
	defer cancel()
	if err := s.peer.tables.WaitIndex(ctx, c.body.Index); err != nil {
		return waitReply{}, fmt.Errorf("wait index: %w", fsm.NewError(fsm.CodeTimeout, "", "at index %d", s.peer.tables.Index()))
	}
	return waitReply{Index: s.peer.tables.Index()}, nil
}
