package mqtt

import (
	"testing"
	"unicode/utf8"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// inside tells whether part is a piece of whole, in memory and capacity.
func inside(whole, part []byte) bool {
	if cap(part) == 0 {
		return true
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(whole)))
	from := uintptr(unsafe.Pointer(unsafe.SliceData(part)))
	return from >= start && from+uintptr(cap(part)) <= start+uintptr(len(whole))
}

func checkError(t *testing.T, err error) {
	t.Helper()
	e := asParseError(t, err)
	reply := e.AppendReply(nil)
	switch {
	case len(reply) == 0:
	case e.Version == V5 && len(reply) == 5 && reply[3] >= 0x80:
	case e.Version != V5 && len(reply) == 4 && reply[3] >= 1 && reply[3] <= 5:
	default:
		t.Fatalf("%+v answers % X", *e, reply)
	}
}

func FuzzParseConnect(f *testing.F) {
	for _, v := range vectors() {
		f.Add(v.packet)
	}
	for _, br := range append(append(headerBreaches(), payloadBreaches()...), propertyBreaches()...) {
		if len(br.packet) < 1000 {
			f.Add(br.packet)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		strict, strictErr := ParseConnect(in, true)
		c, err := ParseConnect(in, false)
		if strictErr == nil {
			if err != nil {
				t.Fatalf("strict accepts what the default refuses: %v", err)
			}
			if diff := cmp.Diff(strict, c, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("strict differs:\n%s", diff)
			}
		} else {
			checkError(t, strictErr)
		}
		if err != nil {
			checkError(t, err)
			return
		}
		if total, err := ConnectLength(in, len(in)); err != nil || total != len(in) {
			t.Fatalf("length %d of %d, %v", total, len(in), err)
		}
		for _, part := range [][]byte{
			c.ClientID, c.Username, c.Password, c.AuthMethod, c.AuthData, c.Properties,
			c.Will.Topic, c.Will.Payload, c.Will.Properties,
		} {
			if !inside(in, part) {
				t.Fatal("a field lies outside the packet")
			}
		}
		if !utf8.Valid(c.ClientID) || !utf8.Valid(c.Username) {
			t.Fatal("client identifier or user name is not UTF-8")
		}
		for _, list := range []Properties{c.Properties, c.Will.Properties} {
			for k, v := range list.User() {
				if !inside(in, k) || !inside(in, v) {
					t.Fatal("a user property lies outside the packet")
				}
			}
		}
		_ = c.String()
	})
}

func FuzzParseConnack(f *testing.F) {
	for _, seed := range []string{
		"\x20\x02\x01\x00", "\x20\x02\x00\x03", "\x20\x03\x00\x88\x00", "\x20\x10\x00\x88\x0D\x1F\x00\x0Ano cluster",
		"\x20\x16\x00\x9C\x13\x1C\x00\x10gw2.example:8883", "\x20\x12\x00\x00\x0F\x12\x00\x09auto-5kq2\x13\x00\x78",
		"\x20\x80\x00", "\x20\xFF\xFF\xFF\xFF", "\xF0\x02\x18\x00",
	} {
		for _, v := range []Version{V31, V311, V5} {
			f.Add([]byte(seed), byte(v))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, level byte) {
		c, err := ParseConnack(in, Version(level))
		for _, part := range [][]byte{c.AssignedClientID, c.ReasonString, c.ServerReference, c.Properties} {
			if !inside(in, part) {
				t.Fatal("a field lies outside the packet")
			}
		}
		if err != nil {
			if e := asParseError(t, err); len(e.AppendReply(nil)) != 0 {
				t.Fatal("a broker is answered")
			}
			return
		}
		if c.Success() && c.CannotServe() {
			t.Fatal("accepted and cannot serve")
		}
	})
}
