package proxy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/fsm"
)

// scriptedProposer answers each Propose by its script.
type scriptedProposer struct {
	mu      sync.Mutex
	batches []*fsm.Bind
	answer  func(call int, b *fsm.Bind) (fsm.Result, error)
}

func (p *scriptedProposer) Propose(_ context.Context, cmd fsm.Command) (fsm.Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := cmd.(*fsm.Bind)
	p.batches = append(p.batches, b)
	return p.answer(len(p.batches), b)
}

func (p *scriptedProposer) calls() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.batches)
}

// writing is a running binding writer.
func writing(t *testing.T, p Proposer) (w *bindingWriter, stop func(), count func(string) int) {
	m, err := NewMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	w = newBindingWriter(p, discardLog(), m.bindings)
	w.pause = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.run(ctx); close(done) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done }) }
	t.Cleanup(stop)
	reg := prometheus.NewRegistry()
	reg.MustRegister(m.bindings)
	return w, stop, func(result string) int {
		x := world{tables: &tables{t: t}, reg: reg}
		return int(x.metric("turnout_bindings_total", "result", result))
	}
}

func TestBindingsAreBatched(t *testing.T) {
	p := &scriptedProposer{answer: func(_ int, b *fsm.Bind) (fsm.Result, error) {
		n := len(b.Bindings)
		return fsm.Result{Bind: fsm.Outcome{Created: n}}, nil
	}}
	w, _, count := writing(t, p)
	const n = 5000
	for i := range n {
		w.enqueue(fsm.DeviceKey(fmt.Sprint(i)), Place{1, 1})
		w.enqueue(fsm.DeviceKey(fmt.Sprint(i)), Place{1, 2}) // as good as always still in the queue
	}
	eventually(t, "all written", func() bool { return w.depth() == 0 && count(bindingCreated) >= n })
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := map[fsm.DeviceKey]fsm.NodeID{}
	for _, b := range p.batches {
		if len(b.Bindings) > bindingBatch {
			t.Errorf("a batch of %d", len(b.Bindings))
		}
		for _, x := range b.Bindings {
			seen[x.Key] = x.Node
		}
		if _, err := fsm.Encode(b); err != nil {
			t.Errorf("batch: %v", err)
		}
	}
	if len(seen) != n || len(p.batches) > n/100 {
		t.Errorf("%d devices in %d batches", len(seen), len(p.batches))
	}
	for key, node := range seen {
		if node != 2 {
			t.Fatalf("%s is bound to the earlier of two places", key)
		}
	}
}

func TestLastBindingsOfABurstAreWritten(t *testing.T) {
	p := &scriptedProposer{answer: func(_ int, b *fsm.Bind) (fsm.Result, error) {
		return fsm.Result{Bind: fsm.Outcome{Created: len(b.Bindings)}}, nil
	}}
	m, err := NewMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := newBindingWriter(p, discardLog(), m.bindings)
	for i := range bindingBatch + 10 { // all of it before the writer runs: one announcement for two batches
		w.enqueue(fsm.DeviceKey(fmt.Sprint(i)), Place{1, 1})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.run(ctx); close(done) }()
	eventually(t, "both batches", func() bool { return p.calls() == 2 })
	cancel()
	<-done
}

func TestBindingFailures(t *testing.T) {
	noLeader := fsm.NewError(fsm.CodeNoLeader, "", "no leader")
	for _, tc := range []struct {
		name   string
		answer func(call int) error
		calls  int
		result string
	}{
		{"not proposed, then written", func(call int) error {
			if call < 3 {
				return fmt.Errorf("propose: %w", noLeader)
			}
			return nil
		}, 3, bindingCreated},
		{"no leader for long", func(call int) error {
			if call <= 5*bindingTries {
				return noLeader
			}
			return nil
		}, 5*bindingTries + 1, bindingCreated},
		{"leader lost, then written", func(call int) error {
			if call == 1 {
				return fsm.NewError(fsm.CodeUnknown, "", "leader lost")
			}
			return nil
		}, 2, bindingCreated},
		{"outcome unknown", func(int) error { return fsm.NewError(fsm.CodeUnknown, "", "leader lost") }, bindingTries, bindingUnknown},
		{"deadline", func(int) error { return context.DeadlineExceeded }, bindingTries, bindingUnknown},
		{"applied, not here yet", func(int) error { return fsm.NewError(fsm.CodeTimeout, "", "late") }, 1, bindingCreated},
		{"refused", func(int) error { return fsm.NewError(fsm.CodeInvalid, "key", "bad") }, 1, bindingFailed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &scriptedProposer{answer: func(call int, b *fsm.Bind) (fsm.Result, error) {
				err := tc.answer(call)
				if err != nil && !errors.Is(err, fsm.ErrTimeout) {
					return fsm.Result{}, err
				}
				return fsm.Result{Bind: fsm.Outcome{Created: len(b.Bindings)}}, err
			}}
			w, _, count := writing(t, p)
			w.enqueue("a", Place{1, 1})
			eventually(t, tc.result, func() bool { return count(tc.result) == 1 })
			if p.calls() != tc.calls {
				t.Errorf("%d calls, want %d", p.calls(), tc.calls)
			}
		})
	}
}

func TestBindingQueueIsBounded(t *testing.T) {
	hold := make(chan struct{})
	p := &scriptedProposer{answer: func(_ int, b *fsm.Bind) (fsm.Result, error) {
		<-hold
		return fsm.Result{Bind: fsm.Outcome{Kept: len(b.Bindings)}}, nil
	}}
	w, _, count := writing(t, p)
	w.enqueue("first", Place{1, 1})
	eventually(t, "the writer to be stuck", func() bool { return w.depth() == 0 })
	for i := range bindingQueue + 7 {
		w.enqueue(fsm.DeviceKey(fmt.Sprint(i)), Place{1, 1})
	}
	if w.depth() != bindingQueue || count(bindingFull) != 7 {
		t.Errorf("%d queued, %d dropped", w.depth(), count(bindingFull))
	}
	w.enqueue("0", Place{1, 2}) // known to the queue: no room needed
	if count(bindingFull) != 7 {
		t.Error("a device in the queue was dropped")
	}
	close(hold)
	eventually(t, "all written", func() bool { return count(bindingKept) == bindingQueue+1 })
}

func TestBindingsAreFlushedAtTheEnd(t *testing.T) {
	p := &scriptedProposer{answer: func(_ int, b *fsm.Bind) (fsm.Result, error) {
		return fsm.Result{Bind: fsm.Outcome{Created: len(b.Bindings)}}, nil
	}}
	w, stop, count := writing(t, p)
	w.enqueue("a", Place{1, 1})
	stop()
	if count(bindingCreated) != 1 {
		t.Error("lost at shutdown")
	}
	w, stop, count = writing(t, &scriptedProposer{answer: func(int, *fsm.Bind) (fsm.Result, error) { return fsm.Result{}, errors.New("gone") }})
	w.enqueue("a", Place{1, 1})
	stop()
	if count(bindingUnknown) != 1 {
		t.Error("not counted at shutdown")
	}
}

// TestBatchInHandIsFlushedAtTheEnd ends the writer while a batch waits for a leader.
func TestBatchInHandIsFlushedAtTheEnd(t *testing.T) {
	var ending atomic.Bool
	p := &scriptedProposer{answer: func(_ int, b *fsm.Bind) (fsm.Result, error) {
		if !ending.Load() {
			return fsm.Result{}, fsm.NewError(fsm.CodeNoLeader, "", "no leader")
		}
		return fsm.Result{Bind: fsm.Outcome{Created: len(b.Bindings)}}, nil
	}}
	w, stop, count := writing(t, p)
	w.pause = time.Hour // of the batch that is in hand
	w.enqueue("a", Place{1, 1})
	eventually(t, "the batch in hand", func() bool { return p.calls() == 1 })
	ending.Store(true)
	stop()
	if count(bindingCreated) != 1 || count(bindingFailed) != 0 {
		t.Error("lost at shutdown")
	}
}
