package proxy

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/fsm"
)

// Proposer writes a command into the replicated tables and waits until the local ones have it.
type Proposer interface {
	Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error)
}

// Bounds of the binding writer.
const (
	bindingQueue   = 16 << 10              // devices waiting; more are dropped and recorded at their next CONNECT
	bindingBatch   = 1024                  // devices in one command
	bindingWait    = 20 * time.Millisecond // for a batch to fill
	bindingTries   = 6                     // of a batch whose outcome is unknown
	bindingPause   = 100 * time.Millisecond
	bindingPauses  = 5               // doublings of the pause
	bindingTimeout = 5 * time.Second // of one try
	bindingFlush   = time.Second     // for what is left at the end
)

// What becomes of a binding, as a metric label.
const (
	bindingCreated  = "created"
	bindingBound    = "bound"
	bindingReplaced = "replaced"
	bindingKept     = "kept"    // an earlier binding won
	bindingStale    = "stale"   // the device moved meanwhile
	bindingFull     = "full"    // dropped: queue full
	bindingFailed   = "failed"  // dropped: not proposed, or refused
	bindingUnknown  = "unknown" // dropped: may or may not have been written
)

func bindingResults() []string {
	return []string{bindingCreated, bindingBound, bindingReplaced, bindingKept, bindingStale, bindingFull, bindingFailed, bindingUnknown}
}

// bindingWriter writes the bindings of devices that were accepted, in batches, one after the other. Losing one is harmless: the device
// computes the same node the next time, and is recorded then.
type bindingWriter struct {
	proposer Proposer
	log      *slog.Logger
	results  *prometheus.CounterVec
	pause    time.Duration // before the second try; doubles

	more chan struct{} // capacity 1: something is queued
	full chan struct{} // capacity 1: a batch is full

	mu    sync.Mutex
	queue map[fsm.DeviceKey]Place
}

func newBindingWriter(p Proposer, log *slog.Logger, results *prometheus.CounterVec) *bindingWriter {
	return &bindingWriter{
		proposer: p, log: log, results: results, pause: bindingPause,
		more: make(chan struct{}, 1), full: make(chan struct{}, 1), queue: map[fsm.DeviceKey]Place{},
	}
}

// enqueue records that a device was accepted. It never blocks. Of two places for one key in the queue the later one counts.
func (w *bindingWriter) enqueue(key fsm.DeviceKey, at Place) {
	w.mu.Lock()
	_, queued := w.queue[key]
	if !queued && len(w.queue) >= bindingQueue {
		w.mu.Unlock()
		w.results.WithLabelValues(bindingFull).Inc()
		return
	}
	w.queue[key] = at
	n := len(w.queue)
	w.mu.Unlock()
	notify(w.more)
	if n >= bindingBatch {
		notify(w.full)
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// depth is the number of bindings waiting.
func (w *bindingWriter) depth() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue)
}

// take removes up to a batch from the queue.
func (w *bindingWriter) take() *fsm.Bind {
	w.mu.Lock()
	defer w.mu.Unlock()
	cmd := &fsm.Bind{Bindings: make([]fsm.Binding, 0, min(len(w.queue), bindingBatch))}
	for key, at := range w.queue { // any order: each binding stands for itself
		if len(cmd.Bindings) == bindingBatch {
			break
		}
		cmd.Bindings = append(cmd.Bindings, fsm.Binding{Key: key, Cluster: at.Cluster, Node: at.Node})
		delete(w.queue, key)
	}
	return cmd
}

// run writes until ctx ends, then tries once to write what is left.
func (w *bindingWriter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			w.flush()
			return
		case <-w.more:
		}
		w.gather(ctx)
		for ctx.Err() == nil {
			cmd := w.take()
			if len(cmd.Bindings) == 0 {
				break
			}
			w.write(ctx, cmd)
			if n := w.depth(); n > 0 && n < bindingBatch {
				notify(w.more) // what is left waits for company again
				break
			}
		}
	}
}

// gather gives a batch time to fill.
func (w *bindingWriter) gather(ctx context.Context) {
	timer := time.NewTimer(bindingWait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-w.full:
	}
}

func (w *bindingWriter) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), bindingFlush)
	defer cancel()
	for w.depth() > 0 {
		cmd := w.take()
		if label, err := w.propose(ctx, cmd); err != nil {
			w.drop(label, cmd, err)
		}
	}
}

// write proposes one batch until its outcome is known. While there is no leader it waits for one, and the queue behind it fills up to its bound.
// What is unknown is proposed again, because a binding may be applied twice, but not for ever: nothing says that the next time is better.
// When ctx ends the batch goes back to the queue.
func (w *bindingWriter) write(ctx context.Context, cmd *fsm.Bind) {
	pause, unknown := w.pause, 0
	for {
		label, err := w.propose(ctx, cmd)
		if label == bindingUnknown {
			unknown++
		}
		switch {
		case err == nil:
			return
		case ctx.Err() != nil:
			w.putBack(cmd)
			return
		case label == bindingFailed && !errors.Is(err, fsm.ErrNoLeader), unknown == bindingTries:
			w.drop(label, cmd, err)
			return
		}
		if !sleep(ctx, pause) {
			w.putBack(cmd)
			return
		}
		pause = min(2*pause, w.pause<<bindingPauses)
	}
}

// propose tries once, and counts what was written. label says what an error means.
func (w *bindingWriter) propose(ctx context.Context, cmd *fsm.Bind) (label string, err error) {
	attempt, cancel := context.WithTimeout(ctx, bindingTimeout)
	defer cancel()
	res, err := w.proposer.Propose(attempt, cmd)
	switch code := fsm.CodeOf(err); {
	case err == nil, code == fsm.CodeTimeout: // the second: applied, and on its way here
		w.count(res.Bind)
		return "", nil
	case code == fsm.CodeUnknown:
		return bindingUnknown, err
	}
	return bindingFailed, err
}

// putBack returns a batch to the queue, except for devices that were accepted elsewhere since.
func (w *bindingWriter) putBack(cmd *fsm.Bind) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range cmd.Bindings {
		if _, queued := w.queue[b.Key]; !queued {
			w.queue[b.Key] = Place{Cluster: b.Cluster, Node: b.Node}
		}
	}
}

func (w *bindingWriter) count(o fsm.Outcome) {
	for label, n := range map[string]int{
		bindingCreated: o.Created, bindingBound: o.Bound, bindingReplaced: o.Replaced, bindingKept: o.Kept, bindingStale: o.Stale,
	} {
		w.results.WithLabelValues(label).Add(float64(n))
	}
}

func (w *bindingWriter) drop(label string, cmd *fsm.Bind, err error) {
	w.results.WithLabelValues(label).Add(float64(len(cmd.Bindings)))
	w.log.Warn("bindings not written; their devices are recorded at their next CONNECT", "result", label, "bindings", len(cmd.Bindings), "error", err)
}

// sleep waits, and is false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
