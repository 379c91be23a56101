package mqtt

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// conversation is a stream with packets of every length form.
func conversation() []byte {
	return join(
		vectors311()[1].packet,
		packet(0x82, b(0, 1), str("a/b"), b(1)),
		b(0xC0, 0),
		packet(0x30, str("t"), make([]byte, 124)), // remaining length 127
		packet(0x32, str("t"), make([]byte, 125)), // 128
		packet(0x30, str("t"), make([]byte, 16380)),
		packet(0x30, str("t"), make([]byte, 16381)),
		b(0xC0, 0x80, 0), // over-long, yet readable
		b(0x62, 2, 0, 1),
		packet(0x30, str("t"), make([]byte, 70000)),
		b(0xE0, 0),
	)
}

func conversationCounts() Counts {
	n := Counts{Bytes: uint64(len(conversation()))}
	n.Packets[CONNECT], n.Packets[SUBSCRIBE], n.Packets[PINGREQ] = 1, 1, 2
	n.Packets[PUBLISH], n.Packets[PUBREL], n.Packets[DISCONNECT] = 5, 1, 1
	return n
}

func TestFramerCounts(t *testing.T) {
	stream := conversation()
	for _, size := range []int{1, 2, 3, 5, 64, 127, 1024, 16384, len(stream)} {
		var f Framer
		var n Counts
		if !f.AtBoundary() {
			t.Error("no boundary before the first byte")
		}
		for rest := stream; len(rest) > 0; {
			k := min(size, len(rest))
			f.Feed(rest[:k], &n)
			rest = rest[k:]
		}
		if !f.AtBoundary() || f.Broken() || n != conversationCounts() {
			t.Errorf("chunks of %d: boundary %v, counts %+v", size, f.AtBoundary(), n)
		}
	}
	if got := unsafe.Sizeof(Framer{}); got != 8 {
		t.Errorf("a framer takes %d bytes", got)
	}
}

// After every single byte the framer agrees with a reader that knows where each
// packet ends.
func TestFramerBoundaries(t *testing.T) {
	stream := join(b(0xC0, 0), packet(0x30, str("t"), s("payload")), b(0xD0, 0x80, 0), packet(0x32, make([]byte, 200)), b(0xE0, 0))
	ends := map[int]bool{0: true, 2: true, 14: true, 17: true, 220: true, 222: true}
	var f Framer
	var n Counts
	for i := range stream {
		at := f.Feed(stream[i:i+1], &n)
		if at != ends[i+1] || at != f.AtBoundary() {
			t.Fatalf("after %d bytes: boundary %v", i+1, at)
		}
		if again := f.Feed(nil, &n); again != at {
			t.Fatalf("an empty chunk moved the framer at %d", i+1)
		}
	}
	for cut := range stream {
		var f Framer
		if f.Feed(stream[:cut], &n) != ends[cut] || f.Feed(stream[cut:], &n) != true {
			t.Errorf("cut at %d: wrong boundary", cut)
		}
	}
}

func TestFramerNotMQTT(t *testing.T) {
	for name, stream := range map[string][]byte{
		"five-byte length": join(b(0xC0, 0), b(0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1)),
		"type 0":           join(b(0xC0, 0), b(0x00, 0x00)),
	} {
		for _, size := range []int{1, len(stream)} {
			var f Framer
			var n Counts
			for rest := stream; len(rest) > 0; rest = rest[size:] {
				f.Feed(rest[:size], &n)
			}
			if !f.Broken() || f.AtBoundary() {
				t.Errorf("%s not noticed", name)
			}
			if f.Feed(b(0xC0, 0), &n) || !f.Broken() {
				t.Errorf("%s forgotten", name)
			}
			if n.Packets[PINGREQ] != 1 || n.Bytes != uint64(len(stream)+2) {
				t.Errorf("%s: counts %+v", name, n)
			}
		}
	}
}

func TestFramerLongestPacket(t *testing.T) {
	var f Framer
	var n Counts
	f.Feed(b(0x30, 0xFF, 0xFF, 0xFF, 0x7F), &n)
	chunk := make([]byte, 1<<20)
	for left := MaxRemainingLength; left > 0; {
		k := min(left, len(chunk))
		left -= k
		if f.Feed(chunk[:k], &n) != (left == 0) {
			t.Fatalf("boundary wrong with %d bytes left", left)
		}
	}
	if n.Packets[PUBLISH] != 1 {
		t.Errorf("counts %+v", n)
	}
}

func TestFramerAllocatesNothing(t *testing.T) {
	stream := conversation()
	var f Framer
	var n Counts
	if got := testing.AllocsPerRun(10, func() { f.Feed(stream, &n) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// naiveCounts reads the stream packet by packet with PacketLength, as a check on
// the framer that shares no code with its state machine.
func naiveCounts(stream []byte) (n Counts, boundary, broken bool) {
	n.Bytes = uint64(len(stream))
	for len(stream) > 0 {
		total, ok, err := PacketLength(stream, 0)
		switch {
		case err != nil:
			return n, false, true
		case !ok || total > len(stream):
			return n, false, false
		}
		n.Packets[TypeOf(stream[0])]++
		stream = stream[total:]
	}
	return n, true, false
}

func FuzzFramer(f *testing.F) {
	f.Add(conversation()[:1000], uint64(1))
	f.Add(b(0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1), uint64(2))
	f.Add(b(0xC0, 0, 0xC0, 0x80, 0, 0x00), uint64(3))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		want, boundary, broken := naiveCounts(stream)
		random := rand.New(rand.NewPCG(seed, 1))
		for _, largest := range []int{len(stream) + 1, 1, 7, 200} {
			var fr Framer
			var n Counts
			for rest := bytes.Clone(stream); len(rest) > 0; {
				k := min(1+random.IntN(largest), len(rest))
				fr.Feed(rest[:k], &n)
				rest = rest[k:]
			}
			if n != want || fr.AtBoundary() != boundary || fr.Broken() != broken {
				t.Fatalf("chunks up to %d: %+v, boundary %v, broken %v; want %+v, %v, %v",
					largest, n, fr.AtBoundary(), fr.Broken(), want, boundary, broken)
			}
		}
	})
}

func BenchmarkFramer(b *testing.B) {
	const chunkSize = 64 << 10
	for _, c := range []struct {
		name   string
		packet []byte
	}{
		{"ping", []byte{0xC0, 0}},
		{"publish_64", packet(0x30, str("t"), make([]byte, 61))},
		{"publish_1000", packet(0x30, str("t"), make([]byte, 1000))},
		{"publish_1MB", packet(0x30, str("t"), make([]byte, 1<<20))},
	} {
		b.Run(c.name, func(b *testing.B) {
			stream := bytes.Repeat(c.packet, 1+chunkSize/len(c.packet))
			var f Framer
			var n Counts
			rest := stream
			b.ReportAllocs()
			b.SetBytes(chunkSize)
			for b.Loop() {
				for fed := 0; fed < chunkSize; {
					k := min(chunkSize-fed, len(rest))
					f.Feed(rest[:k], &n)
					fed += k
					if rest = rest[k:]; len(rest) == 0 {
						rest = stream
					}
				}
			}
		})
	}
}
