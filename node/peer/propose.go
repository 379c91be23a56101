package peer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// Bounds of proposals.
const (
	// applyWait is how long an outcome is waited for when the caller set no deadline, and how long the local tables may
	// take to reach an index.
	applyWait = 10 * time.Second
	// enqueueWait is how long Raft may take to accept an entry; over it nothing was proposed.
	enqueueWait = time.Second

	maxHeld      = 1024     // proposals waiting for a leader
	maxHeldBytes = 16 << 20 // and their entries
)

// Outcomes of a proposal, as the metric's label.
const (
	outcomeOK       = "ok"
	outcomeRefused  = "refused"
	outcomeNoLeader = "no_leader"
	outcomeUnknown  = "unknown"
)

// errNotProposed marks what certainly did not get into the log.
var errNotProposed = errors.New("not proposed")

// Propose puts a command into the log and returns its result once the tables of this gateway show it. The error is
//   - of the command itself (fsm.CodeInvalid and the like): what Encode, the leader or Apply refused; the result carries the index if there is one;
//   - fsm.ErrNoLeader: nothing was proposed; it may be tried again. Returned at the latest after [Timing.Hold] without a leader;
//   - fsm.ErrUnknown: it was sent, the outcome was not learned, it may or may not be applied. Never tried again here;
//   - fsm.ErrTimeout: it is applied, but not in the tables of this gateway yet; the result is valid.
//
// Errors are of type *fsm.Error. Without a deadline in ctx an outcome is waited for 10 s.
func (p *Peer) Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error) {
	entry, err := fsm.Encode(cmd)
	if err != nil {
		p.metrics.proposals.WithLabelValues(outcomeRefused).Inc()
		return fsm.Result{}, err
	}
	ctx, cancel := p.bound(ctx, p.timing.Hold+applyWait)
	defer cancel()
	res, err := p.replicate(ctx, entry)
	if err != nil {
		p.metrics.proposals.WithLabelValues(labelOf(err)).Inc()
		return fsm.Result{}, err
	}
	refused := res.Err()
	if refused != nil {
		p.metrics.proposals.WithLabelValues(outcomeRefused).Inc()
	} else {
		p.metrics.proposals.WithLabelValues(outcomeOK).Inc()
	}
	// A refusal is waited for too: who is told "not the stored version" reads the stored one next.
	if err := p.tables.WaitIndex(ctx, res.Index); err != nil && refused == nil {
		return res, fsm.NewError(fsm.CodeTimeout, "", "applied, but the tables of this gateway have not reached index %d in time", res.Index)
	}
	return res, refused
}

func labelOf(err error) string {
	switch fsm.CodeOf(err) {
	case fsm.CodeNoLeader:
		return outcomeNoLeader
	case fsm.CodeUnknown:
		return outcomeUnknown
	}
	return outcomeRefused
}

// bound gives ctx a deadline if it has none, and ends it with the Peer.
func (p *Peer) bound(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	var end context.CancelFunc
	if _, ok := ctx.Deadline(); ok {
		ctx, end = context.WithCancel(ctx)
	} else {
		ctx, end = context.WithTimeout(ctx, most)
	}
	stop := context.AfterFunc(p.ctx, end)
	return ctx, func() { stop(); end() }
}

// replicate gets an entry applied. Its errors are fsm.ErrNoLeader, fsm.ErrUnknown, and the refusal of a leader that does not know such
// a command. What was not proposed is tried again, at whoever leads by then, for as long as a failover may take.
func (p *Peer) replicate(ctx context.Context, entry []byte) (fsm.Result, error) {
	res, err := p.tryReplicate(ctx, entry)
	if !errors.Is(err, errNotProposed) {
		return res, err
	}
	if !p.held.enter(len(entry)) {
		return fsm.Result{}, noLeader("no leader, and too many writes are waiting for one")
	}
	defer p.held.leave(len(entry))
	hold, cancel := context.WithTimeout(ctx, p.timing.Hold)
	defer cancel()
	for {
		step := p.timing.Heartbeat / 10
		pause(hold, step/2+rand.N(step+1))
		if hold.Err() != nil {
			return fsm.Result{}, noLeader("nothing was written: no leader could be reached")
		}
		res, err := p.tryReplicate(ctx, entry)
		if !errors.Is(err, errNotProposed) {
			return res, err
		}
	}
}

func noLeader(message string) error {
	return &fsm.Error{Code: fsm.CodeNoLeader, Item: -1, Message: message}
}

func unknown(message string) error {
	return &fsm.Error{Code: fsm.CodeUnknown, Item: -1, Message: message}
}

// tryReplicate tries once: here when this gateway leads, otherwise at the leader. errNotProposed means that it may be tried again.
func (p *Peer) tryReplicate(ctx context.Context, entry []byte) (fsm.Result, error) {
	c := p.raft.Load()
	if c == nil || ctx.Err() != nil {
		return fsm.Result{}, errNotProposed
	}
	if c.State() == raft.Leader {
		return p.applyHere(ctx, c, entry)
	}
	leader, ok := c.leader()
	if !ok || leader.id == p.id {
		return fsm.Result{}, errNotProposed
	}
	p.metrics.forwarded.Inc()
	return p.forward(ctx, leader, entry)
}

// applyHere applies an entry on this gateway, which leads or believes so.
func (p *Peer) applyHere(ctx context.Context, c *consensus, entry []byte) (fsm.Result, error) {
	wait := enqueueWait
	if d, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(d))
	}
	// Tables that stopped following the log cannot tell what becomes of an entry behind.
	if wait <= 0 || p.tables.Halted() != nil {
		return fsm.Result{}, errNotProposed
	}
	var f raft.ApplyFuture
	err := p.await(ctx, func() raft.Future {
		f = c.Apply(entry, wait)
		return f
	})
	switch {
	case err == nil:
	case errors.Is(err, errNotProposed), errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fsm.Result{}, errNotProposed
	default:
		// Leadership lost, restored, shut down or given up waiting: the entry may be in a log that wins.
		return fsm.Result{}, unknown("the outcome was not learned: " + reasonOf(err))
	}
	res, ok := f.Response().(fsm.Result)
	if !ok {
		return fsm.Result{}, unknown("the tables gave no result")
	}
	if res.Code == fsm.CodeUnsupported { // stopped meanwhile; other gateways may know what stopped them, and apply this entry
		return fsm.Result{}, unknown("the tables of the leader stopped following the log")
	}
	return res, nil
}

func reasonOf(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return "no answer in time"
	}
	return err.Error()
}

// forward sends an entry to the leader, once.
func (p *Peer) forward(ctx context.Context, leader target, entry []byte) (fsm.Result, error) {
	req := proposeRequest{Entry: entry, Wait: remaining(ctx, applyWait)}
	var reply proposeReply
	err := p.client.call(ctx, leader, pathPropose, req, &reply)
	var notSent *notSentError
	var answered *rpcError
	switch {
	case err == nil:
	case errors.As(err, &notSent):
		return fsm.Result{}, errNotProposed
	case errors.As(err, &answered) && answered.Code == fsm.CodeNoLeader:
		return fsm.Result{}, errNotProposed
	case errors.As(err, &answered) && (answered.Code == fsm.CodeInvalid || answered.Code == fsm.CodeUnsupported):
		// The leader is of another release and does not take such a command: certainly not proposed, and not by trying again.
		return fsm.Result{}, &fsm.Error{Code: answered.Code, Item: -1, Message: answered.Message}
	case errors.As(err, &answered):
		return fsm.Result{}, unknown("the leader does not know the outcome: " + answered.Message)
	default:
		p.logger.Info("forwarding broke", "leader", leader.id, "error", err)
		return fsm.Result{}, unknown("the connection to the leader broke before it answered")
	}
	res, err := fsm.UnmarshalResult(reply.Result)
	if err != nil {
		return fsm.Result{}, unknown("the leader's answer cannot be read")
	}
	return res, nil
}

// remaining returns the time left until ctx ends, at most most.
func remaining(ctx context.Context, most time.Duration) time.Duration {
	if d, ok := ctx.Deadline(); ok {
		return min(most, time.Until(d))
	}
	return most
}

// await starts something of Raft's and waits for its future, or for ctx. Futures have no deadline; the goroutine that waits for one ends
// with it. While the Peer closes nothing is started any more, and the error is errNotProposed.
func (p *Peer) await(ctx context.Context, begin func() raft.Future) error {
	if !p.proposals.begin() {
		return errNotProposed
	}
	f := begin()
	done := make(chan error, 1)
	go func() {
		err := f.Error()
		p.proposals.end()
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("await raft: %w", ctx.Err())
	}
}

// proposals counts what is waiting for Raft. Raft does not answer what was committed but not applied when it is stopped, so
// it is stopped only when nothing is left, if possible.
type proposals struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{} // closed by the last one after drain began
}

// begin counts one more, before it is handed to Raft; false when no more are taken.
func (q *proposals) begin() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.n++
	return true
}

func (q *proposals) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.n--
	if q.n == 0 && q.idle != nil {
		close(q.idle)
		q.idle = nil
	}
}

// drain refuses new proposals and waits at most d for the others.
func (q *proposals) drain(d time.Duration) {
	q.mu.Lock()
	q.closed = true
	if q.n == 0 {
		q.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	q.idle = idle
	q.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	}
}

// held bounds the proposals that wait for a leader.
type held struct {
	mu    sync.Mutex
	n     int
	bytes int
}

func (h *held) enter(bytes int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n >= maxHeld || h.bytes+bytes > maxHeldBytes {
		return false
	}
	h.n++
	h.bytes += bytes
	return true
}

func (h *held) leave(bytes int) {
	h.mu.Lock()
	h.n--
	h.bytes -= bytes
	h.mu.Unlock()
}
