package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// A bootstrap in four steps, each of which survives a crash of anybody:
//  1. The empty gateway with the lowest id in view asks every other one in view for a promise. A promise is given by an empty
//     gateway that sees no lower id and gave none to another within [Timing.Promise]; it is on disk before it is given.
//  2. When all have promised, the list of voters (the lowest ids) and a new cluster id are fixed: the record is on the
//     initiator's disk before anybody hears of it.
//  3. Raft is bootstrapped from the record, then the cluster id is written.
//  4. The record is sent to the other voters until each has it; every voter does so, and deletes it when all have. A voter takes it if its
//     promise names the initiator, whenever that was: it has not been a member of anything since.

// bootstrapRecord is the list of voters of a new cluster.
type bootstrapRecord struct {
	Cluster   string            `cbor:"1,keyasint"`
	Initiator fsm.GatewayID     `cbor:"2,keyasint"`
	Voters    []bootstrapMember `cbor:"3,keyasint"`
}

type bootstrapMember struct {
	ID      fsm.GatewayID `cbor:"1,keyasint"`
	Address string        `cbor:"2,keyasint"`
}

type prepareRequest struct {
	Initiator  fsm.GatewayID   `cbor:"1,keyasint"`
	Expect     int             `cbor:"2,keyasint"`
	Candidates []fsm.GatewayID `cbor:"3,keyasint"`
}

type prepareReply struct{}

type commitReply struct{}

// promise is the last one given, to whom and when.
type promise struct {
	to fsm.GatewayID
	at time.Time
}

func (r *bootstrapRecord) validate() error {
	if !uuidPattern.MatchString(r.Cluster) || !slices.Contains([]int{1, 3, 5}, len(r.Voters)) {
		return errors.New("malformed bootstrap record")
	}
	for i, v := range r.Voters {
		if !uuidPattern.MatchString(string(v.ID)) || checkAddress(v.Address) != nil || i > 0 && r.Voters[i-1].ID >= v.ID {
			return errors.New("malformed bootstrap record")
		}
	}
	return nil
}

// configuration is the same on every voter.
func (r *bootstrapRecord) configuration() raft.Configuration {
	var c raft.Configuration
	for _, v := range r.Voters {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(v.ID), Address: target{v.ID, v.Address}.server()})
	}
	return c
}

// view is what an empty gateway sees, and since when.
type view struct {
	ids   []fsm.GatewayID
	since time.Time
}

// stable reports how long the same ids have been in view.
func (v *view) stable(ids []fsm.GatewayID) time.Duration {
	if !slices.Equal(v.ids, ids) || v.since.IsZero() {
		v.ids, v.since = ids, time.Now()
	}
	return time.Since(v.since)
}

// enrol runs until this gateway is a member.
func (p *Peer) enrol() {
	var seen view
	for p.raft.Load() == nil && p.ctx.Err() == nil {
		p.enrolOnce(&seen)
		t := time.NewTimer(p.timing.Tick)
		select {
		case <-p.gossip.changed:
		case <-t.C:
		case <-p.ctx.Done():
		}
		t.Stop()
	}
}

func (p *Peer) enrolOnce(seen *view) {
	alive := p.gossip.alive()
	members, empty, err := p.sort(alive)
	switch {
	case err != nil:
		p.setProblem(slog.LevelError, err.Error())
		return
	case len(members) > 0 && p.seedsTried.Load(): // all seeds, since one of them may belong to another cluster
		p.setProblem(slog.LevelInfo, "")
		p.joinCluster(members)
		return
	case len(members) > 0:
		return
	case p.ClusterID() != "":
		p.setProblem(slog.LevelWarn, "this gateway belongs to a cluster but has no data; it waits for a member to join again")
		return
	}
	ids := make([]fsm.GatewayID, len(empty))
	for i, m := range empty {
		ids[i] = m.ID
	}
	quiet := seen.stable(ids)
	if len(empty) < p.config.Expect {
		p.setProblem(slog.LevelInfo, fmt.Sprintf("%d of %d gateways in view; waiting for the others to bootstrap", len(empty), p.config.Expect))
		return
	}
	p.setProblem(slog.LevelInfo, "")
	// Alone means alone: no seeds, nobody to wait for. With seeds, they must have been asked, and the view must be calm.
	alone := p.config.Expect == 1 && len(p.config.Join) == 0 && len(empty) == 1
	if !alone && (quiet < p.timing.View || !p.seedsTried.Load()) {
		return
	}
	if ids[0] == p.id {
		p.initiate(empty)
	}
}

// sort splits what gossip shows into members of the one cluster there is and empty gateways that expect what this one
// expects. An error means that nothing may be done.
func (p *Peer) sort(alive []member) (members, empty []member, err error) {
	mine := p.ClusterID()
	for _, m := range alive {
		switch {
		case m.ID == p.id:
			empty = append(empty, m)
		case m.Cluster == "" && m.Expect != p.config.Expect:
			err = fmt.Errorf("gateway %s expects %d gateways, this one %d: no bootstrap until they agree", m.ID, m.Expect, p.config.Expect)
		case m.Cluster == "":
			empty = append(empty, m)
		case mine != "" && m.Cluster != mine:
		case len(members) > 0 && members[0].Cluster != m.Cluster:
			return nil, nil, fmt.Errorf("gossip shows two clusters of gateways, %s and %s: not joining either", members[0].Cluster, m.Cluster)
		default:
			members = append(members, m)
		}
	}
	if len(members) > 0 {
		return members, nil, nil // whoever can join need not bootstrap
	}
	return nil, empty, err
}

// initiate leads a bootstrap of the gateways in view, of which this one has the lowest id.
func (p *Peer) initiate(empty []member) {
	started := time.Now()
	if !p.promiseSelf(started) {
		return
	}
	req := prepareRequest{Initiator: p.id, Expect: p.config.Expect}
	for _, m := range empty {
		req.Candidates = append(req.Candidates, m.ID)
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.timing.Promise/3)
	defer cancel()
	errs := make([]error, len(empty))
	var asked sync.WaitGroup
	for i, m := range empty {
		if m.ID == p.id {
			continue
		}
		asked.Go(func() {
			errs[i] = p.client.call(ctx, target{m.ID, m.Address}, pathPrepare, req, &prepareReply{})
		})
	}
	asked.Wait()
	if err := errors.Join(errs...); err != nil {
		p.logger.Info("bootstrap not agreed, trying again", "error", err)
		return
	}
	rec := bootstrapRecord{Cluster: newUUID(), Initiator: p.id}
	for _, m := range empty[:p.config.Expect] {
		rec.Voters = append(rec.Voters, bootstrapMember{m.ID, m.Address})
	}
	p.enrolment.Lock()
	defer p.enrolment.Unlock()
	// The promises must still hold when the record comes into being.
	if p.raft.Load() != nil || p.promised.to != p.id || time.Since(started) > p.timing.Promise/2 {
		return
	}
	if err := p.adopt(rec); err != nil {
		p.logger.Error("bootstrap", "error", err)
	}
}

// promiseSelf keeps this gateway from promising anything to another one while it leads itself.
func (p *Peer) promiseSelf(now time.Time) bool {
	p.enrolment.Lock()
	defer p.enrolment.Unlock()
	if p.promised.to != p.id && now.Sub(p.promised.at) < p.timing.Promise {
		return false
	}
	if p.promised.to != p.id {
		// An older promise on disk must not let a late record in once this one may exist.
		if err := removeFile(p.path(filePromise)); err != nil {
			p.logger.Error("bootstrap", "error", err)
			return false
		}
	}
	p.promised = promise{p.id, now}
	return true
}

// prepare answers another gateway's request for a promise.
func (s *rpcServer) prepare(_ context.Context, c call[prepareRequest]) (prepareReply, error) {
	p, req := s.peer, c.body
	deny := func(format string, args ...any) (prepareReply, error) {
		return prepareReply{}, &rpcError{fsm.CodeConflict, fmt.Sprintf(format, args...)}
	}
	p.enrolment.Lock()
	defer p.enrolment.Unlock()
	if p.ClusterID() != "" || p.raft.Load() != nil {
		return deny("already a member of a cluster")
	}
	if req.Initiator != c.from.Source || !uuidPattern.MatchString(string(req.Initiator)) || req.Initiator >= p.id || !slices.Contains(req.Candidates, p.id) {
		return deny("not asked for by the gateway with the lowest id")
	}
	if req.Expect != p.config.Expect {
		return deny("this gateway expects %d gateways", p.config.Expect)
	}
	if p.promised.to != req.Initiator && time.Since(p.promised.at) < p.timing.Promise {
		return deny("promised to another gateway")
	}
	members, empty, err := p.sort(p.gossip.alive())
	switch {
	case err != nil:
		return deny("%v", err)
	case len(members) > 0:
		return deny("this gateway sees a cluster")
	case slices.ContainsFunc(empty, func(m member) bool { return m.ID < req.Initiator }):
		return deny("this gateway sees a lower id")
	}
	if err := writeFile(p.path(filePromise), []byte(req.Initiator+"\n")); err != nil {
		return prepareReply{}, &rpcError{fsm.CodeUnknown, "the promise cannot be stored"}
	}
	p.promised = promise{req.Initiator, time.Now()}
	return prepareReply{}, nil
}

// commit takes the record of a bootstrap that this gateway gave its promise for.
func (s *rpcServer) commit(_ context.Context, c call[bootstrapRecord]) (commitReply, error) {
	p, rec := s.peer, c.body
	if err := rec.validate(); err != nil {
		return commitReply{}, &rpcError{fsm.CodeInvalid, err.Error()}
	}
	p.enrolment.Lock()
	defer p.enrolment.Unlock()
	if p.raft.Load() != nil {
		if p.ClusterID() == rec.Cluster {
			return commitReply{}, nil
		}
		return commitReply{}, &rpcError{fsm.CodeConflict, "a member of another cluster"}
	}
	to, err := readID(p.path(filePromise))
	if err != nil || fsm.GatewayID(to) != rec.Initiator || p.ClusterID() != "" {
		return commitReply{}, &rpcError{fsm.CodeConflict, "this gateway did not promise to take part"}
	}
	if !slices.ContainsFunc(rec.Voters, func(v bootstrapMember) bool { return v.ID == p.id }) {
		return commitReply{}, &rpcError{fsm.CodeConflict, "this gateway is not among the voters"}
	}
	if err := p.adopt(rec); err != nil {
		p.logger.Error("bootstrap", "error", err)
		return commitReply{}, &rpcError{fsm.CodeUnknown, "the bootstrap cannot be stored"}
	}
	return commitReply{}, nil
}

// adopt makes this gateway a voter of a new cluster. The caller holds p.enrolment.
func (p *Peer) adopt(rec bootstrapRecord) error {
	b, err := wireEncoding.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	if err := writeFile(p.path(fileBootstrap), b); err != nil {
		return err
	}
	return p.resume(rec)
}

// resume does what the record says as far as it is not done. The caller holds p.enrolment.
func (p *Peer) resume(rec bootstrapRecord) error {
	if p.ClusterID() == "" {
		if err := p.stores.bootstrap(p.raftConfig(nil), rec.configuration()); err != nil {
			return err
		}
	} else if has, err := p.stores.hasData(); err != nil || !has {
		// The id is written after the data: the data was there, and this gateway has voted and acknowledged with it.
		return errors.Join(err, fmt.Errorf("open data: %s holds %s but no Raft data; empty the whole directory, and this gateway joins as a new one",
			p.opts.DataDir, fileClusterID))
	}
	if err := p.becomeMember(rec.Cluster); err != nil {
		return err
	}
	p.logger.Info("bootstrapped", "cluster", rec.Cluster, "voters", len(rec.Voters), "initiator", rec.Initiator)
	p.spawn(func() { p.deliver(rec) })
	return nil
}

// loadRecord returns the record of an unfinished bootstrap, if there is one.
func (p *Peer) loadRecord() (rec bootstrapRecord, ok bool, err error) {
	b, err := readBounded(p.path(fileBootstrap), 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return rec, false, nil
	}
	if err == nil {
		err = wireDecoding.Unmarshal(b, &rec)
	}
	if err == nil {
		err = rec.validate()
	}
	if err != nil {
		return rec, false, fmt.Errorf("read bootstrap record: %w", err)
	}
	return rec, true, nil
}

// deliver sends the record to the other voters until each has it.
func (p *Peer) deliver(rec bootstrapRecord) {
	missing := slices.DeleteFunc(slices.Clone(rec.Voters), func(v bootstrapMember) bool { return v.ID == p.id })
	for wait := p.timing.Tick; len(missing) > 0; wait = min(2*wait, 10*p.timing.Tick) {
		missing = slices.DeleteFunc(missing, func(v bootstrapMember) bool {
			ctx, cancel := context.WithTimeout(p.ctx, rpcTimeout)
			defer cancel()
			err := p.client.call(ctx, target{v.ID, v.Address}, pathCommit, rec, &commitReply{})
			if err != nil {
				p.logger.Info("bootstrap record not delivered", "voter", v.ID, "error", err)
			}
			return err == nil
		})
		if len(missing) > 0 {
			pause(p.ctx, wait)
		}
		if p.ctx.Err() != nil {
			return
		}
	}
	if err := removeFile(p.path(fileBootstrap)); err != nil {
		p.logger.Warn("bootstrap record stays", "error", err)
	}
}

// becomeMember writes the cluster id and starts Raft. The caller holds p.enrolment and has made sure that Raft may run.
func (p *Peer) becomeMember(cluster string) error {
	if p.ClusterID() != cluster {
		if err := writeFile(p.path(fileClusterID), []byte(cluster+"\n")); err != nil {
			return err
		}
		p.cluster.Store(&cluster)
	}
	if err := removeFile(p.path(filePromise)); err != nil {
		return err
	}
	if err := p.startRaft(); err != nil {
		return err
	}
	p.spawn(func() {
		if err := p.gossip.announce(p.meta(), time.Second); err != nil {
			p.logger.Info("gossip", "error", err)
		}
	})
	return nil
}

func (p *Peer) path(name string) string { return filepath.Join(p.opts.DataDir, name) }
