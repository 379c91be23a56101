package proxy

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/buraksezer/consistent"
	"github.com/cespare/xxhash/v2"

	"turnout/fsm"
)

// ring is the consistent hash of one cluster: which member owns which partition. It is computed from replicated values
// alone, so every gateway has the same one; a golden test holds its owner table still. It is immutable.
type ring struct {
	spec    fsm.RingSpec
	members []fsm.NodeID // ascending
	owners  []uint16     // partition → index into members
}

// ringMember names a node to the library by its id, which is never reused; an address may change hands.
type ringMember fsm.NodeID

// String implements consistent.Member.
func (m ringMember) String() string { return "n" + strconv.FormatUint(uint64(m), 10) }

// xxhash64 is the Hasher of algorithm 1.
type xxhash64 struct{}

// Sum64 implements consistent.Hasher.
func (xxhash64) Sum64(b []byte) uint64 { return xxhash.Sum64(b) }

// keyHash is the hash of a device key on every ring.
func keyHash(key []byte) uint64 { return xxhash.Sum64(key) }

// buildRing computes the owners. members must be ascending; without any the ring is nil. The library panics when the bounded load
// leaves no room, which becomes an error here.
func buildRing(spec fsm.RingSpec, members []fsm.NodeID) (r *ring, err error) {
	if len(members) == 0 {
		return nil, nil
	}
	if spec.Algorithm != fsm.RingAlgorithm1 {
		return nil, fmt.Errorf("build ring: algorithm %d is not known to this gateway", spec.Algorithm)
	}
	defer func() {
		if p := recover(); p != nil {
			r, err = nil, fmt.Errorf("build ring: %v", p)
		}
	}()
	nodes := make([]consistent.Member, len(members))
	for i, id := range members {
		nodes[i] = ringMember(id)
	}
	table := consistent.New(nodes, consistent.Config{
		Hasher: xxhash64{}, PartitionCount: int(spec.Partitions), ReplicationFactor: int(spec.Replication),
		Load: float64(spec.LoadPercent) / 100,
	})
	r = &ring{spec: spec, members: members, owners: make([]uint16, spec.Partitions)}
	for p := range r.owners {
		i, ok := slices.BinarySearch(members, fsm.NodeID(table.GetPartitionOwner(p).(ringMember)))
		if !ok {
			return nil, fmt.Errorf("build ring: partition %d has an owner that is no member", p)
		}
		r.owners[p] = uint16(i)
	}
	return r, nil
}

// same reports whether the ring was made of these values.
func (r *ring) same(spec fsm.RingSpec, members []fsm.NodeID) bool {
	return r != nil && r.spec == spec && slices.Equal(r.members, members)
}

// walk visits the indexes of members for a key's hash: the owner of its partition first, then the others in the order in which
// they own the partitions that follow, each once, until visit returns false.
func (r *ring) walk(hash uint64, visit func(member int) bool) {
	var seen [(fsm.MaxClusterNodes + 63) / 64]uint64
	left := len(r.members)
	n := uint64(len(r.owners))
	start := hash % n
	for i := uint64(0); i < n && left > 0; i++ {
		p := start + i
		if p >= n {
			p -= n
		}
		m := r.owners[p]
		if seen[m/64]&(1<<(m%64)) != 0 {
			continue
		}
		seen[m/64] |= 1 << (m % 64)
		left--
		if !visit(int(m)) {
			return
		}
	}
	for m := 0; m < len(r.members) && left > 0; m++ { // members that own no partition
		if seen[m/64]&(1<<(m%64)) == 0 {
			left--
			if !visit(m) {
				return
			}
		}
	}
}
