package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// asParseError fails the test unless err is a *ParseError whose fields fit
// together.
func asParseError(t *testing.T, err error) *ParseError {
	t.Helper()
	var e *ParseError
	if !errors.As(err, &e) {
		t.Fatalf("error %v is no *ParseError", err)
	}
	known := false
	for _, r := range Reasons() {
		known = known || r == e.Reason
	}
	if !known || e.Detail == "" {
		t.Errorf("error %+v has an unlisted reason or no detail", *e)
	}
	return e
}

func TestParseVectors(t *testing.T) {
	for _, v := range vectors() {
		t.Run(v.name, func(t *testing.T) {
			got, err := ParseConnect(v.packet, false)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("lenient result (-want +got):\n%s", diff)
			}
			got, err = ParseConnect(v.packet, true)
			if v.strict != "" {
				if e := asParseError(t, err); e.Reason != v.strict {
					t.Errorf("strict reason %s, want %s", e.Reason, v.strict)
				}
				return
			}
			if err != nil {
				t.Fatalf("strict: %v", err)
			}
			if diff := cmp.Diff(v.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("strict result (-want +got):\n%s", diff)
			}
		})
	}
}

// A packet that is cut while its header still announces the whole is refused,
// and so is one whose header was made to fit the cut: some field then lies.
func TestParseCutVectors(t *testing.T) {
	for _, v := range vectors() {
		for cut := range v.packet {
			if _, err := ParseConnect(v.packet[:cut], false); err == nil {
				t.Errorf("%s: first %d bytes accepted", v.name, cut)
			}
			if cut < 2 {
				continue
			}
			short := packet(0x10, v.packet[2:cut])
			if _, err := ParseConnect(short, false); err == nil {
				t.Errorf("%s: body cut to %d bytes accepted", v.name, cut-2)
			} else {
				asParseError(t, err)
			}
		}
		long := packet(0x10, v.packet[2:], b(0))
		_, err := ParseConnect(long, false)
		if e := asParseError(t, err); e.Reason != ReasonMalformed {
			t.Errorf("%s: trailing byte gives %s", v.name, e.Reason)
		}
		if _, err := ParseConnect(append(bytes.Clone(v.packet), 0xC0, 0), false); err == nil {
			t.Errorf("%s: surplus bytes accepted as part of the packet", v.name)
		}
	}
}

const (
	silent  = ""
	level01 = "\x20\x02\x00\x01"
	id02    = "\x20\x02\x00\x02"
	mal81   = "\x20\x03\x00\x81\x00"
	proto82 = "\x20\x03\x00\x82\x00"
)

// breach is a CONNECT that breaks a rule. lenient is "" where the default lets
// it pass, strict likewise; reply is the answer of the strict parser, and of the
// lenient one if it refuses too.
type breach struct {
	name            string
	packet          []byte
	lenient, strict Reason
	reply           string
}

func headerBreaches() []breach {
	id := str("m-0417")
	list := []breach{
		{"name empty", connect("", 4, 2, id), ReasonBadProtocolName, ReasonBadProtocolName, silent},
		{"name of 4", connect("MQTS", 4, 2, id), ReasonBadProtocolName, ReasonBadProtocolName, silent},
		{"name in lower case", connect("mqtt", 4, 2, id), ReasonBadProtocolName, ReasonBadProtocolName, silent},
		{"name of 5", connect("MQTT5", 5, 2, id), ReasonBadProtocolName, ReasonBadProtocolName, silent},
		{"name of 6", connect("MQTTxx", 4, 2, id), ReasonBadProtocolName, ReasonBadProtocolName, silent},
		{"name of 65535 announced", packet(0x10, b(0xFF, 0xFF), s("MQTT\x04\x02\x00\x3C\x00\x00")), ReasonBadProtocolName, ReasonBadProtocolName, silent},
		{"no level", packet(0x10, str("MQTT")), ReasonMalformed, ReasonMalformed, silent},
		{"empty body", b(0x10, 0), ReasonBadProtocolName, ReasonBadProtocolName, silent},
		{"level 2", connect("MQTT", 2, 2, id), ReasonBadLevel, ReasonBadLevel, level01},
		{"level 85 is 5.0", connect("MQTT", 0x85, 2, b(0), id), "", ReasonBadLevel, "\x20\x03\x00\x84\x00"},
		{"level 83 with MQTT", connect("MQTT", 0x83, 2, id), ReasonBadLevel, ReasonBadLevel, level01},
		{"level 84 with MQIsdp", connect("MQIsdp", 0x84, 2, id), ReasonBadLevel, ReasonBadLevel, level01},
		{"level FF", connect("MQTT", 0xFF, 2, id), ReasonBadLevel, ReasonBadLevel, level01},
		{"bridge 3.1", connect("MQIsdp", 0x83, 2, id), "", ReasonBadLevel, level01},
		{"header flags 3.1", packet(0x1B, str("MQIsdp"), b(3, 2, 0, 60), id), "", "", silent},
		{"header flags 3.1.1", packet(0x12, str("MQTT"), b(4, 2, 0, 60), id), "", ReasonMalformed, silent},
		{"header flags 5.0", packet(0x11, str("MQTT"), b(5, 2, 0, 60, 0), id), "", ReasonMalformed, mal81},
		{"reserved flag 3.1", connect("MQIsdp", 3, 3, id), "", "", silent},
		{"reserved flag 3.1.1", connect("MQTT", 4, 3, id), "", ReasonMalformed, silent},
		{"reserved flag 5.0", connect("MQTT", 5, 3, b(0), id), "", ReasonMalformed, mal81},
		{"will QoS without will 3.1", connect("MQIsdp", 3, 0x0A, id), "", "", silent},
		{"will QoS without will 3.1.1", connect("MQTT", 4, 0x0A, id), "", ReasonMalformed, silent},
		{"will retain without will 5.0", connect("MQTT", 5, 0x22, b(0), id), "", ReasonMalformed, mal81},
		{"will QoS 3, 3.1", connect("MQIsdp", 3, 0x1E, id, str("t"), str("p")), "", ReasonMalformed, silent},
		{"will QoS 3, 3.1.1", connect("MQTT", 4, 0x1E, id, str("t"), str("p")), "", ReasonMalformed, silent},
		{"will QoS 3, 5.0", connect("MQTT", 5, 0x1E, b(0), id, b(0), str("t"), str("p")), "", ReasonMalformed, mal81},
		{"over-long length 3.1.1", join(b(0x10, 0x92, 0), connect("MQTT", 4, 2, id)[2:]), "", "", silent},
		{"over-long length 5.0", join(b(0x10, 0x93, 0), connect("MQTT", 5, 2, b(0), id)[2:]), "", ReasonBadLength, mal81},
	}
	for _, level := range []byte{0, 1, 2, 3, 6, 7, 9, 0x14, 0x7F, 0x80, 0x86} {
		list = append(list, breach{fmt.Sprintf("MQTT level %#x", level), connect("MQTT", level, 2, id), ReasonBadLevel, ReasonBadLevel, level01})
	}
	for _, level := range []byte{0, 2, 4, 5, 6, 9, 0x13, 0x85, 0xFF} {
		list = append(list, breach{fmt.Sprintf("MQIsdp level %#x", level), connect("MQIsdp", level, 2, id), ReasonBadLevel, ReasonBadLevel, level01})
	}
	return list
}

func payloadBreaches() []breach {
	id := str("m-0417")
	bad := func(v string) []byte { return str(v) }
	list := []breach{
		{"no client identifier", connect("MQTT", 4, 2), ReasonMalformed, ReasonMalformed, silent},
		{"client identifier lies", connect("MQTT", 4, 2, b(0, 7), s("m-0417")), ReasonMalformed, ReasonMalformed, silent},
		{"client identifier lies 5.0", connect("MQTT", 5, 2, b(0), b(0xFF, 0xFF), s("m-0417")), ReasonMalformed, ReasonMalformed, mal81},
		{"user name missing 3.1", connect("MQIsdp", 3, 0xC2, id), "", "", silent},
		{"password missing 3.1", connect("MQIsdp", 3, 0xC2, id, str("u")), "", "", silent},
		{"half a user name 3.1", connect("MQIsdp", 3, 0xC2, id, b(0)), ReasonMalformed, ReasonMalformed, silent},
		{"user name missing 3.1.1", connect("MQTT", 4, 0x82, id), ReasonMalformed, ReasonMalformed, silent},
		{"password missing 3.1.1", connect("MQTT", 4, 0xC2, id, str("u")), ReasonMalformed, ReasonMalformed, silent},
		{"password missing 5.0", connect("MQTT", 5, 0x42, b(0), id), ReasonMalformed, ReasonMalformed, mal81},
		{"password only 3.1", connect("MQIsdp", 3, 0x42, id, str("p")), "", "", silent},
		{"password only 3.1.1", connect("MQTT", 4, 0x42, id, str("p")), "", ReasonMalformed, silent},
		{"password only 5.0", connect("MQTT", 5, 0x42, b(0), id, str("p")), "", "", silent},
		{"password of any bytes 3.1.1", connect("MQTT", 4, 0xC2, id, str("u"), str("\xff\x00")), "", "", silent},
		{"password of any bytes 3.1", connect("MQIsdp", 3, 0xC2, id, str("u"), str("\xff")), "", ReasonBadUTF8, silent},
		{"user name not UTF-8", connect("MQTT", 4, 0x82, id, bad("\xff")), ReasonBadUTF8, ReasonBadUTF8, silent},
		{"user name not UTF-8 5.0", connect("MQTT", 5, 0x82, b(0), id, bad("a\x00b")), ReasonBadUTF8, ReasonBadUTF8, mal81},
		{"client identifier with NUL", connect("MQTT", 4, 2, bad("a\x00b")), ReasonBadUTF8, ReasonBadUTF8, silent},
		{"client identifier with NUL in two bytes", connect("MQIsdp", 3, 2, bad("\xC0\x80")), ReasonBadUTF8, ReasonBadUTF8, silent},
		{"client identifier cut in a character", connect("MQTT", 4, 2, bad("ab\xF0\x9F\x98")), ReasonBadUTF8, ReasonBadUTF8, silent},
		{"client identifier with surrogate", connect("MQTT", 5, 2, b(0), bad("\xED\xA0\x80")), ReasonBadUTF8, ReasonBadUTF8, mal81},
		{"client identifier empty 3.1 clean", connect("MQIsdp", 3, 2, str("")), "", ReasonClientIDRejected, id02},
		{"client identifier empty 3.1", connect("MQIsdp", 3, 0, str("")), "", ReasonClientIDRejected, id02},
		{"client identifier empty 3.1.1", connect("MQTT", 4, 0, str("")), "", ReasonClientIDRejected, id02},
		{"client identifier empty 5.0", connect("MQTT", 5, 0, b(0), str("")), "", "", silent},
		{"client identifier of 23, 3.1", connect("MQIsdp", 3, 2, str(strings.Repeat("é", 23))), "", "", silent},
		{"client identifier of 24, 3.1", connect("MQIsdp", 3, 2, str(strings.Repeat("a", 24))), "", ReasonClientIDRejected, id02},
		{"client identifier of 24, 3.1.1", connect("MQTT", 4, 2, str(strings.Repeat("a", 24))), "", "", silent},
		{"client identifier of 65535", connect("MQTT", 4, 2, str(strings.Repeat("a", 65535))), "", "", silent},
		{"client identifier with odd characters", connect("MQTT", 4, 2, str("/ + # $ %")), "", "", silent},
		{"client identifier with BOM and emoji", connect("MQTT", 5, 2, b(0), str("\uFEFF😀")), "", "", silent},
		{"will topic missing", connect("MQTT", 4, 6, id), ReasonMalformed, ReasonMalformed, silent},
		{"will payload missing", connect("MQTT", 4, 6, id, str("t")), ReasonMalformed, ReasonMalformed, silent},
		{"will payload lies", connect("MQTT", 4, 6, id, str("t"), b(0, 9), s("off")), ReasonMalformed, ReasonMalformed, silent},
		{"will topic not UTF-8", connect("MQTT", 4, 6, id, str("\xff"), str("p")), "", ReasonBadUTF8, silent},
		{"will topic empty", connect("MQTT", 5, 6, b(0), id, b(0), str(""), str("p")), "", ReasonProtocolError, "\x20\x03\x00\x90\x00"},
		{"will topic with wildcard", connect("MQTT", 5, 6, b(0), id, b(0), str("a/+"), str("p")), "", ReasonProtocolError, "\x20\x03\x00\x90\x00"},
		{"will topic with wildcard 3.1.1", connect("MQTT", 4, 6, id, str("a/#"), str("p")), "", ReasonProtocolError, silent},
		{"will payload not UTF-8 3.1", connect("MQIsdp", 3, 6, id, str("t"), str("\xff")), "", ReasonBadUTF8, silent},
		{"will payload not UTF-8 3.1.1", connect("MQTT", 4, 6, id, str("t"), str("\xff")), "", "", silent},
		{"trailing byte 3.1.1", connect("MQTT", 4, 2, id, b(0)), ReasonMalformed, ReasonMalformed, silent},
		{"trailing byte 5.0", connect("MQTT", 5, 2, b(0), id, b(0)), ReasonMalformed, ReasonMalformed, mal81},
		{"only trailing byte 3.1", connect("MQIsdp", 3, 2, id, b(0)), ReasonMalformed, ReasonMalformed, silent},
	}
	return list
}

func propertyBreaches() []breach {
	id := str("m-0417")
	of := func(entries ...[]byte) []byte { return connect("MQTT", 5, 2, props(entries...), id) }
	will := func(entries ...[]byte) []byte {
		return connect("MQTT", 5, 6, b(0), id, props(entries...), str("t"), str("p"))
	}
	return []breach{
		{"no property length", connect("MQTT", 5, 2), ReasonMalformed, ReasonMalformed, mal81},
		{"property length unfinished", connect("MQTT", 5, 2, b(0x80)), ReasonMalformed, ReasonMalformed, mal81},
		{"property length of five bytes", connect("MQTT", 5, 2, b(0xFF, 0xFF, 0xFF, 0xFF, 0x01), id), ReasonMalformed, ReasonMalformed, mal81},
		{"property length past the end", connect("MQTT", 5, 2, b(0x09), id), ReasonMalformed, ReasonMalformed, mal81},
		{"property length swallows the client identifier", connect("MQTT", 5, 2, b(0x08), id), ReasonMalformed, ReasonMalformed, mal81},
		{"property length over-long", connect("MQTT", 5, 2, b(0x80, 0), id), "", ReasonMalformed, mal81},
		{"unknown property", of(b(0x7E, 0)), ReasonMalformed, ReasonMalformed, mal81},
		{"property id of two bytes", of(b(0x91, 0, 0, 0, 0, 0)), ReasonMalformed, ReasonMalformed, mal81},
		{"property value cut", of(b(0x11, 0, 0)), ReasonMalformed, ReasonMalformed, mal81},
		{"property string lies", of(b(0x15, 0, 9), s("x")), ReasonMalformed, ReasonMalformed, mal81},
		{"user property without value", of(b(0x26), str("k")), ReasonMalformed, ReasonMalformed, mal81},
		{"subscription identifier unfinished", of(b(0x0B, 0x80)), ReasonMalformed, ReasonMalformed, mal81},
		{"property of another packet", of(b(0x0B, 1)), "", ReasonMalformed, mal81},
		{"will property in CONNECT", of(b(0x18, 0, 0, 0, 1)), "", ReasonMalformed, mal81},
		{"CONNECT property in the will", will(b(0x11, 0, 0, 0, 1)), "", ReasonMalformed, mal81},
		{"will properties missing", connect("MQTT", 5, 6, b(0), id), ReasonMalformed, ReasonMalformed, mal81},
		{"property twice", of(b(0x21, 0, 1), b(0x21, 0, 2)), "", ReasonProtocolError, proto82},
		{"will property twice", will(b(0x01, 1), b(0x01, 1)), "", ReasonProtocolError, proto82},
		{"user property twice", of(b(0x26), str("k"), str("v"), b(0x26), str("k"), str("v")), "", "", silent},
		{"Receive Maximum 0", of(b(0x21, 0, 0)), "", ReasonProtocolError, proto82},
		{"Maximum Packet Size 0", of(b(0x27, 0, 0, 0, 0)), "", ReasonProtocolError, proto82},
		{"Request Problem Information 2", of(b(0x17, 2)), "", ReasonProtocolError, proto82},
		{"Request Response Information 2", of(b(0x19, 2)), "", ReasonProtocolError, proto82},
		{"Payload Format Indicator 2", will(b(0x01, 2)), "", ReasonProtocolError, proto82},
		{"response topic with wildcard", will(b(0x08), str("a/#")), "", ReasonProtocolError, proto82},
		{"content type not UTF-8", will(b(0x03), str("\xff")), "", ReasonBadUTF8, mal81},
		{"correlation data of any bytes", will(b(0x09), str("\xff\x00")), "", "", silent},
		{"authentication data without method", of(b(0x16), str("x")), "", ReasonProtocolError, proto82},
		{"authentication data with method", of(b(0x16), str("\xff"), b(0x15), str("SCRAM")), "", "", silent},
		{"user property not UTF-8", of(b(0x26), str("k"), str("\xff")), "", ReasonBadUTF8, mal81},
		{"Maximum Packet Size 4 silences", of(b(0x27, 0, 0, 0, 4), b(0x21, 0, 0)), "", ReasonProtocolError, silent},
		{"Maximum Packet Size 5 suffices", of(b(0x27, 0, 0, 0, 5), b(0x21, 0, 0)), "", ReasonProtocolError, proto82},
	}
}

func TestBreaches(t *testing.T) {
	for _, br := range append(append(headerBreaches(), payloadBreaches()...), propertyBreaches()...) {
		for _, mode := range []struct {
			strict bool
			want   Reason
		}{{false, br.lenient}, {true, br.strict}} {
			t.Run(fmt.Sprintf("%s strict=%v", br.name, mode.strict), func(t *testing.T) {
				c, err := ParseConnect(br.packet, mode.strict)
				if mode.want == "" {
					if err != nil {
						t.Fatalf("refused: %v", err)
					}
					return
				}
				e := asParseError(t, err)
				if e.Reason != mode.want {
					t.Errorf("reason %s (%s), want %s", e.Reason, e.Detail, mode.want)
				}
				if diff := cmp.Diff(Connect{}, c); diff != "" {
					t.Errorf("refused CONNECT leaves fields: %s", diff)
				}
				if got := string(e.AppendReply(nil)); got != br.reply {
					t.Errorf("reply % X, want % X", got, br.reply)
				}
			})
		}
	}
}

func TestUserProperties(t *testing.T) {
	var entries [][]byte
	for i := range 1000 {
		entries = append(entries, b(0x26), str(fmt.Sprint("key", i)), str(fmt.Sprint("value", i)))
	}
	c, err := ParseConnect(connect("MQTT", 5, 2, props(entries...), str("m-0417")), true)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for k, v := range c.Properties.User() {
		if string(k) != fmt.Sprint("key", n) || string(v) != fmt.Sprint("value", n) {
			t.Fatalf("user property %d is %q=%q", n, k, v)
		}
		n++
	}
	if n != 1000 || string(c.ClientID) != "m-0417" {
		t.Errorf("%d user properties, client identifier %q", n, c.ClientID)
	}
	for range c.Properties.User() {
		break
	}
	for k := range Properties("\x26\x00\x01k").User() {
		t.Errorf("unreadable list yields %q", k)
	}
}

// A device cannot write past its own field: appending to a slice copies.
func TestFieldsDoNotShareCapacity(t *testing.T) {
	whole := connect("MQTT", 4, 0xC2, str("m-0417"), str("plant7"), str("k9!x"))
	before := bytes.Clone(whole)
	c, err := ParseConnect(whole, true)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(c.ClientID, "overwritten"...)
	_ = append(c.Username, "overwritten"...)
	if !bytes.Equal(whole, before) {
		t.Error("appending to a field changed the packet")
	}
}

func TestConnectHidesSecrets(t *testing.T) {
	c := plain(V5, withLogin)
	c.ClientID = []byte("line\nbreak" + strings.Repeat("x", 100))
	c.AuthData, c.Properties = []byte("k9!x"), Properties("k9!x")
	c.HasWill, c.Will = true, Will{Topic: []byte("k9!x"), Payload: []byte("k9!x"), Properties: Properties("k9!x")}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "connect", c)
	shown := []string{log.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		shown = append(shown, fmt.Sprintf(verb, c), fmt.Sprintf(verb, &c), fmt.Sprintf(verb, c.Will), fmt.Sprintf(verb, []any{c}))
	}
	for _, text := range shown {
		for _, secret := range []string{"k9!x", "6b392178", "107 57 33 120", "0x6b, 0x39", "plant7", "\n\x62"} {
			if strings.Contains(text, secret) {
				t.Errorf("%q shows %q", text, secret)
			}
		}
		if strings.Contains(text, strings.Repeat("x", 60)) {
			t.Errorf("client identifier not cut: %q", text)
		}
	}
	if got := plain(V311, nil).String(); got != `CONNECT 3.1.1 client_id="m-0417" keep_alive=60 clean_start=true` {
		t.Errorf("String is %s", got)
	}
}

func TestParseConnectAllocatesNothing(t *testing.T) {
	for _, v := range vectors() {
		if n := testing.AllocsPerRun(100, func() {
			c, err := ParseConnect(v.packet, false)
			if err != nil {
				t.Fatal(err)
			}
			for range c.Properties.User() {
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", v.name, n)
		}
	}
}

func BenchmarkParseConnect(b *testing.B) {
	for _, v := range vectors() {
		if v.name != "3.1.1 user name and password" && v.name != "5.0 will" {
			continue
		}
		b.Run(strings.ReplaceAll(v.name, " ", "_"), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(v.packet)))
			for b.Loop() {
				if _, err := ParseConnect(v.packet, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
