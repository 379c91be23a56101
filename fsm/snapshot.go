package fsm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/zstd"
)

// A snapshot is eight bytes of magic with the format's number, then a zstd stream (RFC 8878, with its own checksum) of parts and
// rows. A part is a length of four bytes, big endian, and as much CBOR: the header, the head of the topology, each cluster, each
// gateway. A row is a device record: key length as uvarint, fixed fields, key. A zero ends the rows, and nothing follows. The
// header carries the checksum that the restored tables must come to.
var snapshotMagic = [8]byte{'T', 'R', 'N', 'S', 'N', 'A', 'P', 1}

// Bounds of a snapshot that is being read. The largest part is a cluster with 200 nodes, all of whose texts are at their own bounds.
const (
	maxSnapshotPart   = 1 << 20
	maxSnapshotWindow = 16 << 20 // of zstd; this version writes 4 MiB
)

type snapshotHeader struct {
	Index   uint64 `cbor:"1,keyasint"`
	Sum     uint64 `cbor:"2,keyasint"`
	Devices int    `cbor:"3,keyasint"`
}

// SnapshotInfo describes a snapshot without restoring it.
type SnapshotInfo struct {
	ClusterID string
	Checksum  Checksum
	Devices   int
	Clusters  int
}

// pinned is the state of the tables at one index, shared with the live tables copy-on-write.
type pinned struct {
	index   uint64
	topo    *Topology
	devices *deviceTable
}

// Snapshot implements raft.FSM. It copies a few pointers; the rows stay shared until the live tables change them.
func (t *Tables) Snapshot() (raft.FSMSnapshot, error) {
	t.mu.Lock() // not RLock: copying marks the shared tree
	defer t.mu.Unlock()
	if t.halted != nil {
		return nil, t.halted
	}
	d := &deviceTable{rows: *t.devices.rows.Copy(), sum: t.devices.sum}
	return &pinned{index: t.index, topo: t.topo.Load(), devices: d}, nil
}

// Persist implements raft.FSMSnapshot.
func (p *pinned) Persist(sink raft.SnapshotSink) error {
	if err := p.write(sink); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (p *pinned) Release() {}

func (p *pinned) write(w io.Writer) error {
	if _, err := w.Write(snapshotMagic[:]); err != nil {
		return err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(z, 64<<10)
	h := snapshotHeader{Index: p.index, Sum: p.devices.sum + topologySum(p.topo), Devices: p.devices.rows.Len()}
	if err := writePart(b, h); err != nil {
		return err
	}
	if err := p.topo.parts(func(v any) error { return writePart(b, v) }); err != nil {
		return err
	}
	buf := make([]byte, 0, binary.MaxVarintLen32+rowBytes+MaxKeyBytes)
	p.devices.rows.Scan(func(k DeviceKey, r row) bool {
		buf = binary.AppendUvarint(buf[:0], uint64(len(k)))
		buf = append(r.append(buf), k...)
		_, err = b.Write(buf)
		return err == nil
	})
	if err != nil {
		return err
	}
	if err := b.WriteByte(0); err != nil {
		return err
	}
	if err := b.Flush(); err != nil {
		return err
	}
	return z.Close()
}

func writePart(w *bufio.Writer, v any) error {
	body, err := encMode.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxSnapshotPart {
		return fmt.Errorf("part of %d bytes exceeds %d", len(body), maxSnapshotPart) // rather than what nobody could read
	}
	if _, err := w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(body)))); err != nil {
		return err
	}
	_, err = w.Write(body)
	return err
}

// Restore implements raft.FSM. It builds new tables aside, checks them against the snapshot's checksum and swaps them in at once:
// readers see the old tables or the new ones. On error the old ones stay.
func (t *Tables) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	p, err := readSnapshot(rc)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.devices, t.index, t.halted = p.devices, p.index, nil
	t.topo.Store(p.topo)
	t.changed.Broadcast()
	return nil
}

// InspectSnapshot reads a whole snapshot, verifies it and says what is in it.
func InspectSnapshot(r io.Reader) (SnapshotInfo, error) {
	p, err := readSnapshot(r)
	if err != nil {
		return SnapshotInfo{}, err
	}
	return SnapshotInfo{
		ClusterID: p.topo.Settings.ClusterID, Devices: p.devices.rows.Len(), Clusters: len(p.topo.Clusters),
		Checksum: Checksum{Index: p.index, Sum: p.devices.sum + topologySum(p.topo)},
	}, nil
}

func readSnapshot(r io.Reader) (*pinned, error) {
	var magic [8]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	if !bytes.Equal(magic[:7], snapshotMagic[:7]) {
		return nil, NewError(CodeInvalid, "", "not a snapshot of Turnout")
	}
	if magic[7] != snapshotMagic[7] {
		return nil, NewError(CodeUnsupported, "", "snapshot format %d is not known to this gateway", magic[7])
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxSnapshotWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	defer z.Close()
	b := bufio.NewReaderSize(z, 64<<10)
	var h snapshotHeader
	if err := readPart(b, &h); err != nil {
		return nil, fmt.Errorf("read snapshot header: %w", err)
	}
	topo, err := readTopology(func(v any) error { return readPart(b, v) })
	if err != nil {
		return nil, fmt.Errorf("read snapshot topology: %w", err)
	}
	if topo.Index > h.Index {
		return nil, NewError(CodeInvalid, "", "snapshot holds a topology later than itself")
	}
	p := &pinned{index: h.Index, topo: topo, devices: newDeviceTable()}
	if err := p.readRows(b); err != nil {
		return nil, fmt.Errorf("read snapshot rows: %w", err)
	}
	// To the very end: only there the stream's own checksum is compared.
	if _, err := b.ReadByte(); err != io.EOF {
		return nil, errors.Join(NewError(CodeInvalid, "", "snapshot does not end where it should"), err)
	}
	if n := p.devices.rows.Len(); n != h.Devices {
		return nil, NewError(CodeInvalid, "", "snapshot holds %d devices, its header says %d", n, h.Devices)
	}
	if p.devices.sum+topologySum(p.topo) != h.Sum {
		return nil, NewError(CodeInvalid, "", "snapshot does not come to the checksum in its header")
	}
	return p, nil
}

func (p *pinned) readRows(b *bufio.Reader) error {
	var fixed [rowBytes]byte
	var key [MaxKeyBytes]byte
	for {
		n, err := binary.ReadUvarint(b)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if n > MaxKeyBytes {
			return NewError(CodeInvalid, "", "device key of %d bytes", n)
		}
		if _, err := io.ReadFull(b, fixed[:]); err != nil {
			return err
		}
		if _, err := io.ReadFull(b, key[:n]); err != nil {
			return err
		}
		r := rowFrom(&fixed)
		if !p.fits(r) || !utf8.Valid(key[:n]) {
			return NewError(CodeInvalid, "", "device record that these tables cannot hold")
		}
		p.devices.put(DeviceKey(key[:n]), r)
	}
}

// fits reports whether a row refers to what is there or, as far as nodes go, was there.
func (p *pinned) fits(r row) bool {
	known := r.cluster == 0 || p.topo.byID[r.cluster] != nil
	return known && r.pin <= p.topo.lastNode && r.binding <= p.topo.lastNode && r.version <= p.index &&
		r.flags&^(flagOrigin|flagBlocked|flagPinStrict) == 0 && r.origin() <= OriginPlaced
}

func readPart(b *bufio.Reader, v any) error {
	var length [4]byte
	if _, err := io.ReadFull(b, length[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > maxSnapshotPart {
		return NewError(CodeInvalid, "", "part of %d bytes", n)
	}
	// Read as it comes: a lying length must not cost more memory than there are bytes.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, b, int64(n)); err != nil {
		return err
	}
	return decMode.Unmarshal(body.Bytes(), v)
}
