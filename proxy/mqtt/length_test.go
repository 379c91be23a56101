package mqtt

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestVariableByteInteger(t *testing.T) {
	for _, c := range []struct {
		value   int
		encoded string
	}{
		{0, "\x00"}, {127, "\x7F"}, {128, "\x80\x01"}, {16383, "\xFF\x7F"}, {16384, "\x80\x80\x01"},
		{2097151, "\xFF\xFF\x7F"}, {2097152, "\x80\x80\x80\x01"}, {268435455, "\xFF\xFF\xFF\x7F"},
	} {
		if got := appendUvarint(nil, c.value); string(got) != c.encoded || uvarintLen(c.value) != len(got) {
			t.Errorf("%d is written % X (%d), want % X", c.value, got, uvarintLen(c.value), c.encoded)
		}
		for cut := range len(c.encoded) {
			if _, n := uvarint([]byte(c.encoded[:cut])); n != 0 {
				t.Errorf("% X read as complete", c.encoded[:cut])
			}
		}
		value, n := uvarint([]byte(c.encoded + "\xFF"))
		if value != c.value || n != len(c.encoded) || overlong([]byte(c.encoded), n) {
			t.Errorf("% X read as %d in %d bytes", c.encoded, value, n)
		}
	}
	for _, encoded := range []string{"\xFF\xFF\xFF\xFF", "\x80\x80\x80\x80\x01", "\x80\x80\x80\x80"} {
		if _, n := uvarint([]byte(encoded)); n != -1 {
			t.Errorf("% X: n = %d, want -1", encoded, n)
		}
	}
	if value, n := uvarint([]byte("\x80\x00")); value != 0 || n != 2 || !overlong([]byte("\x80\x00"), n) {
		t.Error("80 00 is not read as an over-long 0")
	}
}

func TestConnectLength(t *testing.T) {
	for _, c := range []struct {
		name, in string
		limit    int
		total    int
		reason   Reason
		reply    string
	}{
		{"nothing", "", 0, 0, "", ""},
		{"type only", "\x10", 0, 0, "", ""},
		{"three of four", "\x10\x80\x80\x80", 0, 0, "", ""},
		{"four", "\x10\x80\x80\x80\x01", 0, 5 + 2097152, "", ""},
		{"largest", "\x10\xFF\xFF\xFF\x7F", 0, 5 + MaxRemainingLength, "", ""},
		{"fifth", "\x10\xFF\xFF\xFF\xFF", 0, 0, ReasonBadLength, ""},
		{"fifth over the limit", "\x10\x80\x80\x80\x80\x01", 10, 0, ReasonBadLength, ""},
		{"at the limit", "\x10\x14", 22, 22, "", ""},
		{"over the limit", "\x10\x15", 22, 0, ReasonTooLarge, ""},
		{"over the limit, name seen", "\x10\x15\x00\x04MQTT", 22, 0, ReasonTooLarge, ""},
		{"over the limit, 3.1.1", "\x10\x15\x00\x04MQTT\x04\x02", 22, 0, ReasonTooLarge, ""},
		{"over the limit, 5.0", "\x10\x15\x00\x04MQTT\x05\x02", 22, 0, ReasonTooLarge, "\x20\x03\x00\x95\x00"},
		{"3.1 header flags", "\x1F\x02", 0, 4, "", ""},
		{"CONNACK", "\x20\x02\x00\x00", 0, 0, ReasonNotMQTT, ""},
		{"TLS", "\x16\x03\x01\x02\x00\x01", 0, 0, ReasonNotMQTT, ""},
		{"TLS, one byte", "\x16", 0, 0, ReasonNotMQTT, ""},
		{"GET", "GET / HTTP/1.1\r\n", 0, 0, ReasonNotMQTT, ""},
		{"PROXY 1", "PROXY TCP4 ", 0, 0, ReasonNotMQTT, ""},
		{"PROXY 2", "\r\n\r\n\x00\r\nQUIT\n", 0, 0, ReasonNotMQTT, ""},
		{"zero", "\x00", 0, 0, ReasonNotMQTT, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			total, err := ConnectLength([]byte(c.in), c.limit)
			if total != c.total {
				t.Errorf("total %d, want %d", total, c.total)
			}
			if c.reason == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			e := asParseError(t, err)
			if e.Reason != c.reason {
				t.Errorf("reason %s, want %s", e.Reason, c.reason)
			}
			if got := string(e.AppendReply(nil)); got != c.reply {
				t.Errorf("reply % X, want % X", got, c.reply)
			}
		})
	}
}

func TestPacketLength(t *testing.T) {
	for _, c := range []struct {
		in     string
		limit  int
		total  int
		ok     bool
		reason Reason
	}{
		{"", 0, 0, false, ""},
		{"\x20", 0, 0, false, ""},
		{"\x20\x02", 4, 4, true, ""},
		{"\xF0\x18", 0, 26, true, ""},
		{"\xD0\x00", 0, 2, true, ""},
		{"\x20\x80", 0, 0, false, ""},
		{"\x20\x80\x01", 100, 0, false, ReasonTooLarge},
		{"\x20\xFF\xFF\xFF\xFF", 0, 0, false, ReasonBadLength},
		{"\x00", 0, 0, false, ReasonMalformed},
	} {
		total, ok, err := PacketLength([]byte(c.in), c.limit)
		if total != c.total || ok != c.ok || (err != nil) != (c.reason != "") {
			t.Errorf("% X: %d, %v, %v", c.in, total, ok, err)
		}
		if err != nil {
			if e := asParseError(t, err); e.Reason != c.reason || len(e.AppendReply(nil)) != 0 {
				t.Errorf("% X: %+v", c.in, *e)
			}
		}
	}
}

// Every vector, alone and with packets behind it, whole, cut in two at every
// offset and byte by byte, through buffers of all sizes, gives the same packet,
// and no byte behind it is lost.
func TestReadConnect(t *testing.T) {
	for _, v := range vectors() {
		for _, behind := range []string{"", "\xC0\x00", "\x82\x06\x00\x01\x00\x01a\x00"} {
			stream := string(v.packet) + behind
			check := func(how string, r io.Reader, size int) {
				t.Helper()
				packet, surplus, err := ReadConnect(r, make([]byte, size), 65536)
				if err != nil {
					t.Fatalf("%s %s: %v", v.name, how, err)
				}
				rest, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(packet, v.packet) || string(surplus)+string(rest) != behind {
					t.Errorf("%s %s, buffer of %d: packet % X, surplus % X, rest % X", v.name, how, size, packet, surplus, rest)
				}
			}
			for _, size := range []int{0, 1, 2, 3, 7, 16, 64, 4096} {
				check("whole", strings.NewReader(stream), size)
				check("byte by byte", iotest.OneByteReader(strings.NewReader(stream)), size)
				check("end with the data", iotest.DataErrReader(strings.NewReader(stream)), size)
				for cut := range stream {
					check("cut", io.MultiReader(strings.NewReader(stream[:cut]), strings.NewReader(stream[cut:])), size)
				}
			}
		}
	}
}

func TestReadConnectCut(t *testing.T) {
	for _, v := range vectors() {
		for cut := range v.packet {
			packet, surplus, err := ReadConnect(bytes.NewReader(v.packet[:cut]), make([]byte, 64), 0)
			want := io.ErrUnexpectedEOF
			if cut == 0 {
				want = io.EOF
			}
			if !errors.Is(err, want) || packet != nil || surplus != nil {
				t.Errorf("%s cut at %d: % X, % X, %v", v.name, cut, packet, surplus, err)
			}
		}
	}
}

type emptyReader struct{}

func (emptyReader) Read([]byte) (int, error) { return 0, nil }

func TestReadConnectErrors(t *testing.T) {
	lost := errors.New("lost")
	if _, _, err := ReadConnect(iotest.ErrReader(lost), nil, 0); !errors.Is(err, lost) {
		t.Errorf("reader's error became %v", err)
	}
	if _, _, err := ReadConnect(emptyReader{}, nil, 0); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("empty reads give %v", err)
	}
	endless := io.MultiReader(strings.NewReader("\x10\xFF\xFF\xFF\x7F"), endlessReader{})
	if _, _, err := ReadConnect(endless, nil, 65536); asParseError(t, err).Reason != ReasonTooLarge {
		t.Errorf("endless input gives %v", err)
	}
	if _, _, err := ReadConnect(strings.NewReader("GET / HTTP/1.1\r\n"), nil, 0); asParseError(t, err).Reason != ReasonNotMQTT {
		t.Errorf("HTTP gives %v", err)
	}
}

type endlessReader struct{}

func (endlessReader) Read(p []byte) (int, error) { return len(p), nil }

// sizeReader records the largest buffer that it was offered.
type sizeReader struct {
	r       io.Reader
	largest int
}

func (s *sizeReader) Read(p []byte) (int, error) {
	s.largest = max(s.largest, len(p))
	return s.r.Read(p)
}

// A lying length costs no memory: the buffer follows the bytes that arrived.
func TestReadConnectGrowsSlowly(t *testing.T) {
	r := &sizeReader{r: io.MultiReader(strings.NewReader("\x10\xFF\xFF\xFF\x7F"), strings.NewReader(strings.Repeat("x", 5000)))}
	if _, _, err := ReadConnect(r, make([]byte, 0, 2048), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if r.largest > 8192 {
		t.Errorf("%d bytes reserved for 5005 that came", r.largest)
	}
	big := connect("MQTT", 4, 2, str(strings.Repeat("a", 65000)))
	packet, surplus, err := ReadConnect(io.MultiReader(bytes.NewReader(big), endlessReader{}), make([]byte, 2048), 65536)
	if err != nil || !bytes.Equal(packet, big) {
		t.Fatalf("large CONNECT: %d bytes, %v", len(packet), err)
	}
	if len(surplus) > 2048 {
		t.Errorf("%d surplus bytes taken", len(surplus))
	}
}

func TestReadConnectUsesTheLentBuffer(t *testing.T) {
	in := bytes.NewReader(vectors311()[1].packet)
	buf := make([]byte, 2048)
	if n := testing.AllocsPerRun(100, func() {
		in.Seek(0, io.SeekStart)
		if _, _, err := ReadConnect(in, buf, 65536); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
