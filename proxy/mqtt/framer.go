package mqtt

// Counts is what framers have seen. It belongs to one goroutine, which may use
// it for all the streams it serves.
type Counts struct {
	Packets [16]uint64 // complete packets, by PacketType
	Bytes   uint64     // all bytes, also those of a stream that is not MQTT
}

// Framer follows the packets of one direction of a stream. It keeps 8 bytes and
// looks only at fixed headers: bodies are skipped by their length. The zero
// value stands at the start of a stream. A stream that turns out not to be MQTT
// (a five-byte length, packet type 0) is no error, since the relay carries it on
// all the same; the framer then never reports a boundary again.
type Framer struct {
	rest uint32 // body bytes to come; while in the length, its value so far
	mode uint8  // see below
	typ  uint8
}

// Modes of a Framer; 1 to 4 is the length byte that comes next.
const (
	modeBoundary = 0
	modeBody     = 5
	modeBroken   = 6
)

// AtBoundary tells whether all packets so far are complete, so that a packet may
// be inserted here. It is true before the first byte.
func (f *Framer) AtBoundary() bool { return f.mode == modeBoundary }

// Broken tells whether the stream has shown not to be MQTT.
func (f *Framer) Broken() bool { return f.mode == modeBroken }

// Feed takes the next bytes of the stream, adds to n, which must not be nil, and
// returns [Framer.AtBoundary]. A packet counts when its last byte has come.
func (f *Framer) Feed(chunk []byte, n *Counts) bool {
	n.Bytes += uint64(len(chunk))
	for len(chunk) > 0 {
		switch f.mode {
		case modeBoundary:
			chunk = chunk[skipSmall(chunk, n):]
			if len(chunk) == 0 {
				return true
			}
			f.typ, f.rest, f.mode = chunk[0]>>4, 0, 1
			chunk = chunk[1:]
			if f.typ == 0 {
				f.mode = modeBroken
			}
		case modeBody:
			if uint64(len(chunk)) < uint64(f.rest) {
				f.rest -= uint32(len(chunk))
				return false
			}
			chunk = chunk[f.rest:]
			f.complete(n)
		case modeBroken:
			return false
		default:
			f.lengthByte(chunk[0], n)
			chunk = chunk[1:]
		}
	}
	return f.mode == modeBoundary
}

// skipSmall passes over whole packets with a one-byte length, the bulk of most
// streams, and returns where the first other one begins.
func skipSmall(chunk []byte, n *Counts) int {
	i := 0
	for i+1 < len(chunk) {
		typ, length := chunk[i]>>4, chunk[i+1]
		end := i + 2 + int(length)
		if length >= 0x80 || typ == 0 || end > len(chunk) {
			break
		}
		n.Packets[typ]++
		i = end
	}
	return i
}

func (f *Framer) lengthByte(b byte, n *Counts) {
	f.rest |= uint32(b&0x7F) << (7 * (f.mode - 1))
	switch {
	case b >= 0x80 && f.mode == 4:
		f.mode = modeBroken
	case b >= 0x80:
		f.mode++
	case f.rest == 0:
		f.complete(n)
	default:
		f.mode = modeBody
	}
}

func (f *Framer) complete(n *Counts) {
	n.Packets[f.typ&0x0F]++
	f.mode, f.rest = modeBoundary, 0
}
