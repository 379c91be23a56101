package peer

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// terms turns leadership into contexts: one for each time that this gateway leads.
type terms struct {
	mu      sync.Mutex
	current context.Context // nil while not leading
	end     context.CancelFunc
	began   time.Time
	changed chan struct{} // closed at the next change
}

func newTerms() *terms { return &terms{changed: make(chan struct{})} }

// set tells the latest. Two true in a row are two terms: a loss in between was not seen.
func (t *terms) set(leading bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end != nil {
		t.end()
		t.current, t.end = nil, nil
	}
	if leading {
		t.current, t.end = context.WithCancel(context.Background())
		t.began = time.Now()
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// age returns for how long this gateway has led, 0 when it does not.
func (t *terms) age() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current == nil {
		return 0
	}
	return time.Since(t.began)
}

// next waits for a term that is not over, and returns its context; nil when ctx ends first.
func (t *terms) next(ctx context.Context) context.Context {
	for {
		t.mu.Lock()
		current, changed := t.current, t.changed
		t.mu.Unlock()
		if current != nil && current.Err() == nil {
			return current
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// RunWhileLeader runs duty each time this gateway becomes the leader, with a context that ends when it no longer is, and waits for
// it to return before it is run again. At the start of duty the tables hold everything that was ever acknowledged, the settings
// of the cluster included. RunWhileLeader returns when ctx ends or the Peer is closed.
func (p *Peer) RunWhileLeader(ctx context.Context, duty func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	for {
		term := p.terms.next(ctx)
		if term == nil {
			return
		}
		run, end := context.WithCancel(ctx)
		stop := context.AfterFunc(term, end)
		if p.establish(run) {
			duty(run)
		}
		ended := run.Err() != nil
		stop()
		end()
		if ctx.Err() != nil {
			return
		}
		if !ended {
			// The duty gave up early, or Raft lost its leadership before we heard: not again in a tight loop.
			pause(ctx, p.timing.Tick)
		}
	}
}

// establish makes the tables of a new leader complete: everything of earlier terms applied, and the settings in place. It returns
// false when leadership ended before.
func (p *Peer) establish(ctx context.Context) bool {
	for ctx.Err() == nil {
		c := p.raft.Load()
		if c == nil {
			return false
		}
		term := c.CurrentTerm()
		err := p.await(ctx, func() raft.Future { return c.Barrier(enqueueWait) })
		if err == nil {
			err = p.initTables(ctx)
		}
		if err == nil {
			if c.CurrentTerm() == term {
				p.established.Store(term)
			}
			return true
		}
		if c.State() != raft.Leader {
			return false
		}
		p.logger.Warn("leader not ready", "error", err)
		pause(ctx, p.timing.Tick)
	}
	return false
}

// initTables gives the tables of a new cluster their identity and settings.
func (p *Peer) initTables(ctx context.Context) error {
	have := p.tables.Topology().Settings
	mine := p.ClusterID()
	if have.ClusterID != "" {
		if have.ClusterID != mine {
			p.logger.Error("tables belong to another cluster of gateways", "cluster", mine, "tables", have.ClusterID)
		}
		return nil
	}
	settings := p.opts.Seed
	settings.ClusterID = mine
	settings.Secret = randomSecret()
	entry, err := fsm.Encode(&fsm.Init{Settings: settings})
	if err != nil {
		return err
	}
	res, err := p.applyHere(ctx, p.raft.Load(), entry)
	if err != nil {
		return err
	}
	return res.Err()
}

// pause waits for a while or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
