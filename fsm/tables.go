package fsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/raft"
)

// Tables are the replicated tables of one gateway. They implement raft.FSM; Apply, Snapshot and Restore are for Raft alone, every
// other method may be called from any goroutine.
type Tables struct {
	topo atomic.Pointer[Topology]

	mu      sync.RWMutex // guards everything below; topo is stored while it is held
	changed *sync.Cond   // on mu; broadcast after every apply and restore
	devices *deviceTable
	index   uint64
	halted  error // first entry that could not be understood; nothing is applied after it
}

// New returns empty tables at index 0.
func New() *Tables {
	t := &Tables{devices: newDeviceTable()}
	t.changed = sync.NewCond(&t.mu)
	t.topo.Store(newTopology(topologyHead{}))
	return t
}

// Topology returns the current topology. It costs one atomic load.
func (t *Tables) Topology() *Topology { return t.topo.Load() }

// Lookup finds a device by the bytes of its key. It does not allocate and does not keep key.
func (t *Tables) Lookup(key []byte) (Device, bool) {
	if len(key) == 0 {
		return Device{}, false
	}
	k := DeviceKey(unsafe.String(&key[0], len(key))) // the map only compares it
	t.mu.RLock()
	r, ok := t.devices.rows.Get(k)
	t.mu.RUnlock()
	if !ok {
		return Device{}, false
	}
	return r.device(""), true
}

// Device finds a device by its key.
func (t *Tables) Device(key DeviceKey) (Device, bool) {
	t.mu.RLock()
	r, ok := t.devices.rows.Get(key)
	t.mu.RUnlock()
	if !ok {
		return Device{}, false
	}
	return r.device(key), true
}

// DeviceFilter chooses devices for a listing. The zero value chooses all.
type DeviceFilter struct {
	Prefix  DeviceKey
	Cluster ClusterID // 0: any
	Node    NodeID    // pinned to it, or bound to it without a pin; 0: any
	Blocked *bool
}

func (f DeviceFilter) match(r row) bool {
	return (f.Cluster == 0 || r.cluster == f.Cluster) &&
		(f.Node == 0 || r.pin == f.Node || r.pin == 0 && r.binding == f.Node) &&
		(f.Blocked == nil || *f.Blocked == (r.flags&flagBlocked != 0))
}

// scanRows bounds how many rows one listing looks at under the read lock.
const scanRows = 20_000

// Devices lists up to limit devices behind the key after, in a stable order. next is the cursor for the page that follows, empty
// at the end. A page may be shorter than limit, even empty, and still have a next when a filter leaves much out. A limit below 1
// counts as 1. Devices written or removed between two pages are in the listing or not; all others are in it once.
func (t *Tables) Devices(after DeviceKey, limit int, f DeviceFilter) (page []Device, next DeviceKey) {
	limit = max(limit, 1) // a page that cannot move the cursor would never end
	from := max(after, f.Prefix)
	seen := 0
	t.mu.RLock()
	defer t.mu.RUnlock()
	t.devices.rows.Ascend(from, func(k DeviceKey, r row) bool {
		if k == after && after != "" {
			return true
		}
		if len(k) < len(f.Prefix) || k[:len(f.Prefix)] != f.Prefix {
			return false
		}
		if len(page) == limit || seen == scanRows {
			next = from
			return false
		}
		seen++
		from = k
		if f.match(r) {
			page = append(page, r.device(k))
		}
		return true
	})
	return page, next
}

// Checksum is the state of the tables in one number, tied to the index it was taken at. Tables with the same index have the same sum.
type Checksum struct {
	Index uint64
	Sum   uint64
}

// String returns the sum as 16 hexadecimal digits.
func (c Checksum) String() string { return fmt.Sprintf("%016x", c.Sum) }

// Status is what the tables say of themselves.
type Status struct {
	Checksum Checksum
	Devices  int
	// Halted is why these tables stopped following the log, nil while they do.
	Halted error
}

// Status returns index, checksum and size in one consistent view.
func (t *Tables) Status() Status {
	t.mu.RLock()
	s := Status{Checksum: Checksum{Index: t.index, Sum: t.devices.sum}, Devices: t.devices.rows.Len(), Halted: t.halted}
	topo := t.topo.Load()
	t.mu.RUnlock()
	s.Checksum.Sum += topologySum(topo) // outside the lock: it is the slow part, and topo cannot change
	return s
}

// Halted returns why these tables stopped following the log, nil while they do.
func (t *Tables) Halted() error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.halted
}

// DevicesIn returns the number of devices whose record names the cluster.
func (t *Tables) DevicesIn(id ClusterID) int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.devices.count[id]
}

// Index returns the Raft index of the last command that these tables finished. Readers see its effects.
func (t *Tables) Index() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.index
}

// WaitIndex returns once the tables have applied the command at index, or with the context's error.
func (t *Tables) WaitIndex(ctx context.Context, index uint64) error {
	return t.wait(ctx, func() bool { return t.index >= index })
}

// WaitTopology returns the current topology as soon as it is another one than seen, or the context's error; nil means that none was seen.
// A Restore always counts as a change, whatever index it brings, and many changes may be seen as one.
func (t *Tables) WaitTopology(ctx context.Context, seen *Topology) (*Topology, error) {
	var topo *Topology
	err := t.wait(ctx, func() bool {
		topo = t.topo.Load()
		return topo != seen
	})
	return topo, err
}

func (t *Tables) wait(ctx context.Context, done func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		t.mu.Lock() // so that the broadcast cannot fall between the check and the wait
		defer t.mu.Unlock()
		t.changed.Broadcast()
	})
	defer stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	for !done() {
		if err := ctx.Err(); err != nil {
			return err
		}
		t.changed.Wait()
	}
	return nil
}

// topologySum is the share of the topology in the checksum. It is computed when asked for: the topology is small.
func topologySum(topo *Topology) uint64 {
	h := xxhash.New()
	err := topo.parts(func(v any) error {
		b, err := encMode.Marshal(v)
		h.Write(b)
		return err
	})
	if err != nil {
		panic(err) // plain data: cannot happen
	}
	return h.Sum64()
}

// Apply implements raft.FSM. It returns a Result.
func (t *Tables) Apply(log *raft.Log) any {
	if log.Type != raft.LogCommand {
		return nil
	}
	c, err := Decode(log.Data)
	t.mu.Lock()
	defer t.mu.Unlock()
	var res Result
	switch {
	case t.halted != nil:
		// Going on without the entry that was not understood would make these tables differ from the others'.
		res = refusal(NewError(CodeUnsupported, "", "tables stopped at an entry from a later version"))
	case CodeOf(err) == CodeUnsupported:
		t.halted = fmt.Errorf("entry %d: %w", log.Index, err)
		res = refusal(err)
	case err != nil:
		res = refusal(err)
	default:
		res = t.apply(log.Index, c)
	}
	if t.halted == nil {
		t.index = log.Index
	}
	res.Index = log.Index
	if res.Code == CodeOK {
		res.Item = -1
	}
	t.changed.Broadcast()
	return res
}

func refusal(err error) Result {
	var e *Error
	if !errors.As(err, &e) {
		e = NewError(CodeInvalid, "", "%v", err)
	}
	return Result{Code: e.Code, Field: e.Field, Item: e.Item, Message: e.Message}
}
