package mqtt

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestAppendConnackGolden(t *testing.T) {
	for _, c := range []struct {
		name                    string
		v                       Version
		r                       Refusal
		reasonString, reference string
		maxPacket               uint32
		want                    string
	}{
		{"3.1.1 unavailable", V311, RefuseServerUnavailable, "ignored", "ignored", 0, "\x20\x02\x00\x03"},
		{"3.1 unavailable", V31, RefuseServerUnavailable, "", "", 0, "\x20\x02\x00\x03"},
		{"5.0 unavailable", V5, RefuseServerUnavailable, "", "", 0, "\x20\x03\x00\x88\x00"},
		{"5.0 reason", V5, RefuseServerUnavailable, "no cluster", "", 0, "\x20\x10\x00\x88\x0D\x1F\x00\x0Ano cluster"},
		{"5.0 no reference with this code", V5, RefuseServerUnavailable, "no cluster", "gw2", 0, "\x20\x10\x00\x88\x0D\x1F\x00\x0Ano cluster"},
		{"5.0 reason fits", V5, RefuseServerUnavailable, "no cluster", "", 18, "\x20\x10\x00\x88\x0D\x1F\x00\x0Ano cluster"},
		{"5.0 reason does not fit", V5, RefuseServerUnavailable, "no cluster", "", 17, "\x20\x03\x00\x88\x00"},
		{"5.0 five bytes", V5, RefuseServerUnavailable, "no cluster", "", 5, "\x20\x03\x00\x88\x00"},
		{"5.0 four bytes", V5, RefuseServerUnavailable, "no cluster", "", 4, ""},
		{"5.0 another server", V5, RefuseUseAnotherServer, "", "gw2.example:8883", 0, "\x20\x16\x00\x9C\x13\x1C\x00\x10gw2.example:8883"},
		{"5.0 moved", V5, RefuseServerMoved, "", "[2001:db8::7]:8883", 0, "\x20\x18\x00\x9D\x15\x1C\x00\x12[2001:db8::7]:8883"},
		{"5.0 reason gives way", V5, RefuseUseAnotherServer, "full", "gw2.example:8883", 24, "\x20\x16\x00\x9C\x13\x1C\x00\x10gw2.example:8883"},
		{"5.0 reference gives way", V5, RefuseUseAnotherServer, "full", "gw2.example:8883", 23, "\x20\x03\x00\x9C\x00"},
		{"5.0 reason that is no text", V5, RefuseBusy, "a\x00b", "", 0, "\x20\x03\x00\x89\x00"},
		{"5.0 reason too long", V5, RefuseBusy, strings.Repeat("a", 65536), "", 0, "\x20\x03\x00\x89\x00"},
		{"5.0 reference that is no text", V5, RefuseServerMoved, "", "\xff", 0, "\x20\x03\x00\x9D\x00"},
		{"3.1.1 malformed", V311, RefuseMalformed, "", "", 0, ""},
		{"unknown version", 0, RefuseBusy, "", "", 0, ""},
		{"unknown version, version refused", 0, RefuseUnsupportedVersion, "", "", 0, "\x20\x02\x00\x01"},
		{"no refusal", V5, 0, "", "", 0, ""},
	} {
		got := AppendConnack([]byte("x"), c.v, c.r, c.reasonString, c.reference, c.maxPacket)
		if string(got) != "x"+c.want {
			t.Errorf("%s: % X, want % X", c.name, got[1:], c.want)
		}
	}
}

// The table of refusals, and which codes a CONNACK may carry (5.0 §3.2.2.2,
// 3.1.1 §3.2.2.3).
func TestRefusalCodes(t *testing.T) {
	want := map[Refusal][2]byte{
		RefuseServerUnavailable: {0x88, 3}, RefuseBusy: {0x89, 3}, RefuseQuota: {0x97, 3}, RefuseConnectRate: {0x9F, 3},
		RefuseUseAnotherServer: {0x9C, 3}, RefuseServerMoved: {0x9D, 3}, RefuseDraining: {0x88, 3},
		RefuseNotAuthorized: {0x87, 5}, RefuseBadCredentials: {0x86, 4}, RefuseBanned: {0x8A, 5}, RefuseClientID: {0x85, 2},
		RefuseUnsupportedVersion: {0x84, 1}, RefuseMalformed: {0x81, 0}, RefuseProtocolError: {0x82, 0},
		RefuseTooLarge: {0x95, 0}, RefuseBadAuthMethod: {0x8C, 0}, RefuseWillTopic: {0x90, 0},
	}
	legal := "\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8A\x8C\x90\x95\x97\x99\x9A\x9B\x9C\x9D\x9F"
	labels := map[string]bool{"none": true}
	for _, r := range Refusals() {
		codes, ok := want[r]
		if !ok || r.Code(V5) != codes[0] || r.Code(V311) != codes[1] || r.Code(V31) != codes[1] {
			t.Errorf("%s has codes %#x, %d", r, r.Code(V5), r.Code(V311))
		}
		if strings.IndexByte(legal, r.Code(V5)) < 0 || r.Code(V311) > 5 {
			t.Errorf("%s has a code that no CONNACK may carry", r)
		}
		if labels[r.String()] {
			t.Errorf("label %s stands twice", r)
		}
		labels[r.String()] = true
		if permanent := strings.IndexByte("\x81\x82\x84\x85\x86\x87\x8A\x8C\x90\x95\x9D", r.Code(V5)) >= 0; r.Transient() == permanent {
			t.Errorf("%s: transient is %v", r, r.Transient())
		}
		p5 := AppendConnack(nil, V5, r, "why", "gw2", 0)
		c, err := ParseConnack(p5, V5)
		if err != nil || c.Success() || c.Code != r.Code(V5) || string(c.ReasonString) != "why" {
			t.Errorf("%s does not read back: %+v, %v", r, c, err)
		}
	}
	if len(want) != len(Refusals()) {
		t.Errorf("%d refusals, %d expected", len(Refusals()), len(want))
	}
}

func TestParseConnack(t *testing.T) {
	for _, c := range []struct {
		name, in    string
		v           Version
		want        Connack
		cannotServe bool
	}{
		{"3.1.1 accepted, present", "\x20\x02\x01\x00", V311, Connack{Version: V311, SessionPresent: true}, false},
		{"3.1 accepted", "\x20\x02\x01\x00", V31, Connack{Version: V31}, false},
		{"3.1.1 unavailable", "\x20\x02\x00\x03", V311, Connack{Version: V311, Code: 3}, true},
		{"3.1.1 not authorized", "\x20\x02\x00\x05", V311, Connack{Version: V311, Code: 5}, false},
		{"5.0 accepted", "\x20\x03\x01\x00\x00", V5, Connack{Version: V5, SessionPresent: true}, false},
		{"5.0 unavailable", "\x20\x03\x00\x88\x00", V5, Connack{Version: V5, Code: 0x88}, true},
		{"5.0 busy", "\x20\x03\x00\x89\x00", V5, Connack{Version: V5, Code: 0x89}, true},
		{"5.0 quota", "\x20\x03\x00\x97\x00", V5, Connack{Version: V5, Code: 0x97}, false},
		{"5.0 code 3 of 3.x", "\x20\x03\x00\x03\x00", V5, Connack{Version: V5, Code: 3}, false},
		{"5.0 moved", "\x20\x18\x00\x9D\x15\x1C\x00\x12[2001:db8::7]:8883", V5, Connack{
			Version: V5, Code: 0x9D, ServerReference: []byte("[2001:db8::7]:8883"),
			Properties: Properties("\x1C\x00\x12[2001:db8::7]:8883"),
		}, true},
		{"5.0 another", "\x20\x03\x00\x9C\x00", V5, Connack{Version: V5, Code: 0x9C}, true},
		{"5.0 client, 3.x broker", "\x20\x02\x00\x01", V5, Connack{Version: V311, Code: 1}, false},
		{"5.0 assigned", "\x20\x12\x00\x00\x0F\x12\x00\x09auto-5kq2\x13\x00\x78", V5, Connack{
			Version: V5, AssignedClientID: []byte("auto-5kq2"), HasServerKeepAlive: true, ServerKeepAlive: 120,
			Properties: Properties("\x12\x00\x09auto-5kq2\x13\x00\x78"),
		}, false},
		{"5.0 limits", "\x20\x1D\x00\x00\x1A\x11\x00\x00\x00\x0A\x21\x00\x05\x27\x00\x00\x10\x00\x22\x00\x09\x24\x01\x25\x00\x28\x01\x29\x01\x2A\x01", V5, Connack{
			Version: V5, HasSessionExpiry: true, SessionExpiry: 10, ReceiveMaximum: 5, MaximumPacketSize: 4096, TopicAliasMaximum: 9,
			Properties: Properties("\x11\x00\x00\x00\x0A\x21\x00\x05\x27\x00\x00\x10\x00\x22\x00\x09\x24\x01\x25\x00\x28\x01\x29\x01\x2A\x01"),
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.want.ReceiveMaximum == 0 {
				c.want.ReceiveMaximum = 65535
			}
			in := []byte(c.in)
			got, err := ParseConnack(in, c.v)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got.CannotServe() != c.cannotServe || got.Success() != (got.Code == 0) {
				t.Errorf("cannot serve %v, success %v", got.CannotServe(), got.Success())
			}
			for cut := range in {
				if _, err := ParseConnack(in[:cut], c.v); err == nil {
					t.Errorf("first %d bytes accepted", cut)
				}
				// A 5.0 body of two bytes is the 3.x form; every other cut lies.
				if cut >= 2 && cut != 4 {
					if _, err := ParseConnack(packet(0x20, in[2:cut]), c.v); err == nil {
						t.Errorf("body of %d bytes accepted", cut-2)
					}
				}
			}
			if n := testing.AllocsPerRun(10, func() { _, _ = ParseConnack(in, c.v) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func TestParseConnackRefuses(t *testing.T) {
	for _, c := range []struct {
		in     string
		v      Version
		reason Reason
	}{
		{"", V311, ReasonBadLength},
		{"\x20", V311, ReasonBadLength},
		{"\x20\x02\x00\x00\x00", V311, ReasonBadLength},
		{"\x20\xFF\xFF\xFF\xFF", V311, ReasonBadLength},
		{"\xD0\x00", V311, ReasonMalformed},
		{"\x20\x00", V311, ReasonMalformed},
		{"\x20\x01\x00", V311, ReasonMalformed},
		{"\x20\x03\x00\x00\x00", V311, ReasonMalformed},
		{"\x20\x04\x00\x00\x00\x00", V5, ReasonMalformed},
		{"\x20\x03\x00\x00\x01", V5, ReasonMalformed},
		{"\x20\x05\x00\x88\x02\x7E\x00", V5, ReasonMalformed},
		{"\x20\x06\x00\x88\x03\x1F\x00\x01", V5, ReasonMalformed},
	} {
		got, err := ParseConnack([]byte(c.in), c.v)
		if e := asParseError(t, err); e.Reason != c.reason || len(e.AppendReply(nil)) != 0 {
			t.Errorf("% X: %+v, want %s", c.in, *e, c.reason)
		}
		if len(c.in) > 4 && c.in[3] == 0x88 && got.Code != 0x88 {
			t.Errorf("% X: code lost", c.in)
		}
	}
}

func TestAppendDisconnectGolden(t *testing.T) {
	for _, c := range []struct {
		name                    string
		v                       Version
		code                    byte
		reasonString, reference string
		maxPacket               uint32
		want                    string
	}{
		{"code", V5, CodeAdministrativeAction, "", "", 0, "\xE0\x02\x98\x00"},
		{"code in four bytes", V5, CodeAdministrativeAction, "why", "", 4, "\xE0\x02\x98\x00"},
		{"code in three bytes", V5, CodeAdministrativeAction, "why", "", 3, "\xE0\x01\x98"},
		{"two bytes are too few", V5, CodeAdministrativeAction, "", "", 2, ""},
		{"reason", V5, CodeServerMoved, "moved", "", 0, "\xE0\x0A\x9D\x08\x1F\x00\x05moved"},
		{"reason does not fit", V5, CodeServerMoved, "moved", "", 11, "\xE0\x02\x9D\x00"},
		{"reference", V5, CodeUseAnotherServer, "", "gw2.example:8883", 0, "\xE0\x15\x9C\x13\x1C\x00\x10gw2.example:8883"},
		{"no reference with this code", V5, CodeServerShuttingDown, "", "gw2.example:8883", 0, "\xE0\x02\x8B\x00"},
		{"long reason", V5, CodeServerShuttingDown, strings.Repeat("a", 200), "", 0, "\xE0\xCE\x01\x8B\xCB\x01\x1F\x00\xC8" + strings.Repeat("a", 200)},
		{"3.1.1", V311, CodeAdministrativeAction, "", "", 0, ""},
		{"3.1", V31, CodeAdministrativeAction, "", "", 0, ""},
		{"unknown", 0, CodeAdministrativeAction, "", "", 0, ""},
	} {
		got := AppendDisconnect([]byte("x"), c.v, c.code, c.reasonString, c.reference, c.maxPacket)
		if string(got) != "x"+c.want {
			t.Errorf("%s: % X, want % X", c.name, got[1:], c.want)
		}
	}
	for _, v := range []Version{V31, V311, V5} {
		if got := string(ClientDisconnect(v)); got != "\xE0\x00" {
			t.Errorf("to a broker, %s: % X", v, got)
		}
	}
}

// Whatever the limit, the answer never exceeds it.
func TestAnswersRespectMaximumPacketSize(t *testing.T) {
	for limit := uint32(1); limit < 300; limit++ {
		for _, n := range []int{0, 1, 100, 122, 123, 130, 200} {
			text := strings.Repeat("a", n)
			if got := AppendConnack(nil, V5, RefuseServerMoved, text, text, limit); len(got) > int(limit) || len(got) == 0 && limit >= 5 {
				t.Fatalf("CONNACK of %d bytes for a limit of %d", len(got), limit)
			}
			if got := AppendDisconnect(nil, V5, CodeServerMoved, text, text, limit); len(got) > int(limit) || len(got) == 0 && limit >= 3 {
				t.Fatalf("DISCONNECT of %d bytes for a limit of %d", len(got), limit)
			}
		}
	}
}

func TestNames(t *testing.T) {
	for first, want := range map[byte]string{
		0x10: "CONNECT", 0x20: "CONNACK", 0x3D: "PUBLISH", 0x40: "PUBACK", 0x50: "PUBREC", 0x62: "PUBREL", 0x70: "PUBCOMP",
		0x82: "SUBSCRIBE", 0x90: "SUBACK", 0xA2: "UNSUBSCRIBE", 0xB0: "UNSUBACK", 0xC0: "PINGREQ", 0xD0: "PINGRESP",
		0xE0: "DISCONNECT", 0xF0: "AUTH", 0x00: "reserved 0",
	} {
		if got := TypeOf(first).String(); got != want {
			t.Errorf("%#x is %s, want %s", first, got, want)
		}
	}
	for v, want := range map[Version]string{V31: "3.1", V311: "3.1.1", V5: "5.0", 0: "unknown", 9: "unknown"} {
		if v.String() != want {
			t.Errorf("version %d is %s", byte(v), v)
		}
	}
	if got := (&ParseError{Reason: ReasonMalformed, Detail: "why"}).Error(); got != "mqtt malformed: why" {
		t.Errorf("error reads %q", got)
	}
}
