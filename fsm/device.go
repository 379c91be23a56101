package fsm

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
	"github.com/tidwall/btree"
)

// row is a device record as it is stored: no pointers, so that the garbage collector has nothing to follow but the keys.
type row struct {
	cluster ClusterID
	pin     NodeID
	binding NodeID
	flags   uint8
	version uint64
}

// The flags of a row; the two lowest bits are the Origin.
const (
	flagOrigin    = 0b0011
	flagBlocked   = 0b0100
	flagPinStrict = 0b1000
)

func (r row) origin() Origin { return Origin(r.flags & flagOrigin) }

func (r *row) setOrigin(o Origin) { r.flags = r.flags&^flagOrigin | uint8(o) }

func (r *row) setFlag(flag uint8, on bool) {
	r.flags &^= flag
	if on {
		r.flags |= flag
	}
}

func (r row) device(key DeviceKey) Device {
	return Device{
		Key: key, Cluster: r.cluster, Origin: r.origin(), Pin: r.pin, PinStrict: r.flags&flagPinStrict != 0,
		Binding: r.binding, Blocked: r.flags&flagBlocked != 0, Version: r.version,
	}
}

// rowBytes is the fixed part of a device record in snapshots and checksums.
const rowBytes = 4 + 4 + 4 + 1 + 8

func (r row) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.cluster))
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.pin))
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.binding))
	dst = append(dst, r.flags)
	return binary.BigEndian.AppendUint64(dst, r.version)
}

func rowFrom(b *[rowBytes]byte) row {
	return row{
		cluster: ClusterID(binary.BigEndian.Uint32(b[0:])), pin: NodeID(binary.BigEndian.Uint32(b[4:])),
		binding: NodeID(binary.BigEndian.Uint32(b[8:])), flags: b[12], version: binary.BigEndian.Uint64(b[13:]),
	}
}

// sum is the row's share of the checksum of the tables.
func (r row) sum(key DeviceKey) uint64 {
	var buf [rowBytes + MaxKeyBytes]byte
	return xxhash.Sum64(append(r.append(buf[:0]), key...))
}

// deviceTable holds the rows and what is counted over them. The checksum is the sum of the rows' hashes modulo 2^64: it does not
// depend on order, and a change costs two hashes. A copy is cheap and independent; the caller locks.
type deviceTable struct {
	rows  btree.Map[DeviceKey, row]
	sum   uint64
	count map[ClusterID]int // rows that name the cluster
}

func newDeviceTable() *deviceTable { return &deviceTable{count: map[ClusterID]int{}} }

func (t *deviceTable) put(key DeviceKey, r row) {
	old, replaced := t.rows.Set(key, r)
	if replaced {
		t.forget(key, old)
	}
	t.sum += r.sum(key)
	if r.cluster != 0 {
		t.count[r.cluster]++
	}
}

func (t *deviceTable) remove(key DeviceKey) {
	if old, ok := t.rows.Delete(key); ok {
		t.forget(key, old)
	}
}

func (t *deviceTable) forget(key DeviceKey, old row) {
	t.sum -= old.sum(key)
	if old.cluster == 0 {
		return
	}
	if t.count[old.cluster]--; t.count[old.cluster] == 0 {
		delete(t.count, old.cluster)
	}
}
