package peer

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// maxLag is how many entries a non-voter may be behind the leader and still count as caught up.
const maxLag = 100

// standing is one server as the leader's duty sees it.
type standing struct {
	id    raft.ServerID
	voter bool
	// fit: answers, follows this leader, and has been caught up for long enough.
	fit bool
}

// planPromotions returns the non-voters to make voters, in order. The number of voters grows in odd steps, 1 → 3 → 5, up to
// target: an even number has the quorum of the next odd one without surviving more. From an odd number two go together or none;
// from an even number, which a failed step or a removal leaves, one goes.
func planPromotions(servers []standing, target int) []raft.ServerID {
	voters := 0
	var fit []raft.ServerID
	for _, s := range servers {
		switch {
		case s.voter:
			voters++
		case s.fit:
			fit = append(fit, s.id)
		}
	}
	slices.Sort(fit)
	want := 2
	if voters%2 == 0 {
		want = 1
	}
	if voters == 0 || voters+want > target || len(fit) < want {
		return nil
	}
	return fit[:want]
}

// voterTarget is how many voters the cluster should have.
func voterTarget(expect int) int {
	if expect <= 3 {
		return 3
	}
	return 5
}

// promote is the leader's duty: gather what the servers say, plan, act.
func (p *Peer) promote(ctx context.Context) {
	since := map[raft.ServerID]time.Time{} // from when a server has been seen caught up, each time
	for ctx.Err() == nil {
		if c := p.raft.Load(); c != nil {
			p.act(ctx, c, planPromotions(p.gather(ctx, c, since), voterTarget(p.config.Expect)))
		}
		pause(ctx, p.timing.Tick)
	}
}

// gather asks every non-voter for its status.
func (p *Peer) gather(ctx context.Context, c *consensus, since map[raft.ServerID]time.Time) []standing {
	servers := c.servers()
	caughtUp := make([]bool, len(servers))
	var asked sync.WaitGroup
	for i, s := range servers {
		at, err := parseTarget(string(s.Address))
		if err != nil || s.Suffrage == raft.Voter {
			continue
		}
		asked.Go(func() {
			st, err := p.statusOf(ctx, at)
			caughtUp[i] = err == nil && st.Leader == p.id && st.Applied > 0 && st.Applied+maxLag >= c.AppliedIndex()
		})
	}
	asked.Wait()
	out := make([]standing, len(servers))
	for i, s := range servers {
		out[i] = standing{id: s.ID, voter: s.Suffrage == raft.Voter}
		if !caughtUp[i] {
			delete(since, s.ID)
			continue
		}
		if since[s.ID].IsZero() {
			since[s.ID] = time.Now()
		}
		out[i].fit = time.Since(since[s.ID]) >= p.timing.CaughtUp
	}
	return out
}

// act makes the servers voters, one after the other; it stops at the first that fails, and the next round plans anew.
func (p *Peer) act(ctx context.Context, c *consensus, ids []raft.ServerID) {
	if len(ids) == 0 {
		return
	}
	p.changing.Lock()
	defer p.changing.Unlock()
	for _, id := range ids {
		f := c.GetConfiguration()
		if f.Error() != nil {
			return
		}
		i := slices.IndexFunc(f.Configuration().Servers, func(s raft.Server) bool { return s.ID == id && s.Suffrage == raft.Nonvoter })
		if i < 0 {
			return
		}
		add := func() raft.Future {
			return c.AddVoter(id, f.Configuration().Servers[i].Address, f.Index(), enqueueWait)
		}
		if err := p.await(ctx, add); err != nil {
			p.logger.Warn("promotion", "gateway", id, "error", err)
			return
		}
		p.logger.Info("gateway is a voter", "gateway", fsm.GatewayID(id))
	}
}
