package test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"turnout/api/client"
	"turnout/test/harness"
)

// TestUnroutableConnects goes through everything that is no CONNECT, or none that can be routed. Strict or not, the answer is the same.
func TestUnroutableConnects(t *testing.T) {
	d := newDoorstep(t)
	key := func(n int) []byte { return text(strings.Repeat("k", n)) }
	lie := []byte{0xFF, 0xFF, 'a'} // a string of three bytes that says it has 65535
	big := bytes.Repeat([]byte("p"), 60_000)
	type row struct {
		name   string
		send   []byte
		finish bool // the device ends its stream behind it
		want   []byte
		result string
		strict string // result under strict, where another rule catches it first
	}
	rows := []row{
		{name: "nothing, as health checks do", finish: true, result: "probe"},
		{name: "half a CONNECT, then the end", send: connect311(2, text("half"))[:9], finish: true, result: "hangup"},

		{name: "HTTP GET", send: []byte("GET /mqtt HTTP/1.1\r\nHost: gateway.test\r\n\r\n"), result: "not_mqtt"},
		{name: "HTTP POST", send: []byte("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"), result: "not_mqtt"},
		{name: "TLS hello", send: clientHello(t), result: "not_mqtt"},
		{name: "SSH", send: []byte("SSH-2.0-client\r\n"), result: "not_mqtt"},
		{name: "PROXY v1", send: []byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"), result: "not_mqtt"},
		{name: "PROXY v2", send: []byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00"), result: "not_mqtt"},
		{name: "CONNACK", send: []byte{0x20, 2, 0, 0}, result: "not_mqtt"},
		{name: "PUBLISH", send: []byte{0x30, 4, 0, 1, 't', 'x'}, result: "not_mqtt"},
		{name: "PINGREQ", send: []byte{0xC0, 0}, result: "not_mqtt"},
		{name: "AUTH", send: []byte{0xF0, 0}, result: "not_mqtt"},

		{name: "five-byte length", send: []byte{0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0x01}, result: "bad_length"},
		{name: "five-byte length of zero", send: []byte{0x10, 0x80, 0x80, 0x80, 0x80, 0x00}, result: "bad_length"},
		{name: "five-byte length before 5.0", send: append([]byte{0x10, 0x93, 0x80, 0x80, 0x80, 0x00}, connect5(2, nil, text("m-0417"))[2:]...), result: "bad_length"},
		{name: "268 MB announced", send: []byte{0x10, 0xFF, 0xFF, 0xFF, 0x7F}, result: "too_large"},
		{name: "one byte over the limit", send: []byte{0x10, 0xFD, 0xFF, 0x03}, result: "too_large"},
		{name: "268 MB announced in 3.1.1", send: append([]byte{0x10, 0xFF, 0xFF, 0xFF, 0x7F}, connect311(2)[2:]...), result: "too_large"},
		{name: "268 MB announced in 5.0", send: append([]byte{0x10, 0xFF, 0xFF, 0xFF, 0x7F}, connect5(2, nil)[2:]...), want: connack5(0x95), result: "too_large"},
		{name: "120 kB sent in 5.0", send: connect5(0xC2, nil, text("large"), text(string(big)), text(string(big))), want: connack5(0x95), result: "too_large"},

		{name: "empty packet", send: []byte{0x10, 0}, result: "bad_protocol_name"},
		{name: "wrong protocol name", send: connect("MQTX", 4, 2, text("a")), result: "bad_protocol_name"},
		{name: "name in lower case", send: connect("mqtt", 4, 2, text("a")), result: "bad_protocol_name"},
		{name: "name too short", send: connect("MQT", 4, 2, text("a")), result: "bad_protocol_name"},
		{name: "name too long", send: connect("MQTTX", 5, 2, []byte{0}, text("a")), result: "bad_protocol_name"},
		{name: "empty name", send: connect("", 4, 2, text("a")), result: "bad_protocol_name"},
		{name: "name of 65535 bytes", send: []byte{0x10, 8, 0xFF, 0xFF, 'M', 'Q', 'T', 'T', 4, 2}, result: "bad_protocol_name"},

		{name: "no level", send: []byte{0x10, 6, 0, 4, 'M', 'Q', 'T', 'T'}, result: "malformed"},
		{name: "level alone in 3.1.1", send: []byte{0x10, 7, 0, 4, 'M', 'Q', 'T', 'T', 4}, result: "malformed"},
		{name: "level alone in 5.0", send: []byte{0x10, 7, 0, 4, 'M', 'Q', 'T', 'T', 5}, want: connack5(0x81), result: "malformed"},
		{name: "lying client id in 3.1", send: connect31(2, lie), result: "malformed"},
		{name: "lying client id in 3.1.1", send: connect311(2, lie), result: "malformed"},
		{name: "lying client id in 5.0", send: connect5(2, nil, lie), want: connack5(0x81), result: "malformed"},
		{name: "lying will topic", send: connect311(6, text("a"), lie), result: "malformed"},
		{name: "lying will topic in 5.0", send: connect5(6, nil, text("a"), []byte{0}, lie), want: connack5(0x81), result: "malformed"},
		{name: "lying will payload", send: connect311(6, text("a"), text("t"), lie), result: "malformed"},
		{name: "lying will payload in 5.0", send: connect5(6, nil, text("a"), []byte{0}, text("t"), lie), want: connack5(0x81), result: "malformed"},
		{name: "lying user name", send: connect311(0x82, text("a"), lie), result: "malformed"},
		{name: "lying user name in 5.0", send: connect5(0x82, nil, text("a"), lie), want: connack5(0x81), result: "malformed"},
		{name: "lying password", send: connect311(0xC2, text("a"), text("u"), lie), result: "malformed"},
		{name: "lying password in 5.0", send: connect5(0xC2, nil, text("a"), text("u"), lie), want: connack5(0x81), result: "malformed"},
		{name: "user name flag without the field", send: connect311(0x82, text("a")), result: "malformed"},
		{name: "user name flag without the field in 5.0", send: connect5(0x82, nil, text("a")), want: connack5(0x81), result: "malformed"},
		{name: "lying property length", send: connect("MQTT", 5, 2, []byte{0x7F}, text("a")), want: connack5(0x81), result: "malformed"},
		{name: "five-byte property length", send: connect("MQTT", 5, 2, []byte{0x80, 0x80, 0x80, 0x80, 0}, text("a")), want: connack5(0x81), result: "malformed"},
		{name: "lying property value", send: connect5(2, append([]byte{0x15}, lie...), text("a")), want: connack5(0x81), result: "malformed"},
		{name: "half a property", send: connect5(2, []byte{0x11, 0, 0}, text("a")), want: connack5(0x81), result: "malformed"},
		{name: "unknown property", send: connect5(2, []byte{0x7E, 0}, text("a")), want: connack5(0x81), result: "malformed"},
		{name: "lying will properties", send: connect5(6, nil, text("a"), []byte{0x7F}, text("t"), text("w")), want: connack5(0x81), result: "malformed"},
		{name: "bytes behind the last field in 3.1", send: connect31(2, text("a"), []byte{0}), result: "malformed"},
		{name: "bytes behind the last field", send: connect311(2, text("a"), []byte{0}), result: "malformed"},
		{name: "bytes behind the last field in 5.0", send: connect5(2, nil, text("a"), []byte{0}), want: connack5(0x81), result: "malformed"},

		{name: "over-long key in 3.1", send: connect31(2, key(257)), want: connack3(2), result: "key_too_long", strict: "client_id_rejected"},
		{name: "over-long key in 3.1.1", send: connect311(2, key(257)), want: connack3(2), result: "key_too_long"},
		{name: "over-long key in 5.0", send: connect5(2, nil, key(257)), want: connack5(0x85), result: "key_too_long"},
		{name: "60 kB key in 3.1.1", send: connect311(2, key(60_000)), want: connack3(2), result: "key_too_long"},
		{name: "60 kB key in 5.0", send: connect5(2, nil, key(60_000)), want: connack5(0x85), result: "key_too_long"},
		{name: "over-long key where the answer is too large", send: connect5(2, []byte{0x27, 0, 0, 0, 4}, key(257)), result: "key_too_long"},
		{name: "over-long key where the answer just fits", send: connect5(2, []byte{0x27, 0, 0, 0, 5}, key(257)), want: connack5(0x85), result: "key_too_long"},
	}
	for i := range 8 {
		noise := randomBytes(d.rand, 16+d.rand.IntN(500))
		if noise[0]>>4 == 1 {
			noise[0] ^= 0x80 // what begins like a CONNECT is for the other rows
		}
		rows = append(rows, row{name: fmt.Sprintf("random bytes %d", i), send: noise, result: "not_mqtt"})
	}
	for _, level := range []byte{0, 1, 2, 3, 6, 9, 0x7F, 0x80, 0x89, 0xFF} {
		rows = append(rows, row{name: fmt.Sprintf("MQTT level %02x", level), send: connect("MQTT", level, 2, text("a")), want: connack3(1), result: "bad_level"})
	}
	for _, level := range []byte{0, 2, 4, 5, 9, 0x84} {
		rows = append(rows, row{name: fmt.Sprintf("MQIsdp level %02x", level), send: connect("MQIsdp", level, 2, text("a")), want: connack3(1), result: "bad_level"})
	}
	for name, bad := range map[string]string{"a stray byte": "a\xff", "a cut sequence": "a\xc3", "an over-long form": "\xc0\x80", "a surrogate": "\xed\xa0\x80", "U+0000": "a\x00b"} {
		rows = append(rows,
			row{name: "id with " + name + " in 3.1", send: connect31(2, text(bad)), result: "bad_utf8"},
			row{name: "id with " + name + " in 3.1.1", send: connect311(2, text(bad)), result: "bad_utf8"},
			row{name: "id with " + name + " in 5.0", send: connect5(2, nil, text(bad)), want: connack5(0x81), result: "bad_utf8"},
			row{name: "user name with " + name + " in 3.1.1", send: connect311(0x82, text("a"), text(bad)), result: "bad_utf8"},
			row{name: "user name with " + name + " in 5.0", send: connect5(0x82, nil, text("a"), text(bad)), want: connack5(0x81), result: "bad_utf8"},
		)
	}
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			d.refused(t, lenient, tt.send, tt.finish, tt.want, tt.result)
			if tt.strict == "" {
				tt.strict = tt.result
			}
			d.refused(t, strict, tt.send, tt.finish, tt.want, tt.strict)
		})
	}
	for _, gateway := range []int{lenient, strict} { // the bounds themselves still fit
		d.accepted(t, gateway, connect311(2, key(256)))
		d.accepted(t, gateway, connect5(2, nil, key(256)))
		// 10 bytes of variable header, 3 of client identifier, 3 of will topic, 2 + n of will payload, behind 4 of fixed header
		d.accepted(t, gateway, connect311(6, text("l"), text("t"), text(strings.Repeat("w", 64<<10-4-10-3-3-2))))
	}
}

// TestHarmlessBreaches goes through what the standard forbids and no reader can misunderstand: it reaches the broker as it was sent, and
// only strict refuses it. What the standard allows passes strict too.
func TestHarmlessBreaches(t *testing.T) {
	d := newDoorstep(t)
	id := text("m-0417")
	will := func(flags byte) []byte { return connect311(flags, id, text("t"), text("w")) }
	will5 := func(flags byte, properties []byte, topic string) []byte {
		return connect5(flags, nil, id, append([]byte{byte(len(properties))}, properties...), text(topic), text("w"))
	}
	flagged := func(packet []byte) []byte { packet[0] |= 1; return packet }
	overlong := func(packet []byte) []byte {
		return append([]byte{packet[0], packet[1] | 0x80, 0}, packet[2:]...)
	}
	for _, tt := range []struct {
		name   string
		send   []byte
		want   []byte // of the strict gateway
		result string // of the strict gateway
	}{
		{"3.1 id of 23 characters", connect31(2, text(strings.Repeat("m", 23))), nil, "accepted"},
		{"3.1 id of 24 characters", connect31(2, text(strings.Repeat("m", 24))), connack3(2), "client_id_rejected"},
		{"3.1 id of 23 characters in 46 bytes", connect31(2, text(strings.Repeat("é", 23))), nil, "accepted"},
		{"3.1 empty id", connect31(2, text("")), connack3(2), "client_id_rejected"},
		{"3.1.1 empty id, clean session", connect311(2, text("")), nil, "accepted"},
		{"3.1.1 empty id, no clean session", connect311(0, text("")), connack3(2), "client_id_rejected"},
		{"5.0 empty id", connect5(0, nil, text("")), nil, "accepted"},
		{"3.1 password without user name", connect31(0x42, id, text("k9!x")), nil, "accepted"}, // 3.1 has no rule
		{"3.1.1 password without user name", connect311(0x42, id, text("k9!x")), nil, "malformed"},
		{"5.0 password without user name", connect5(0x42, nil, id, text("k9!x")), nil, "accepted"},
		{"3.1 user name flag without the field", connect31(0xC2, id), nil, "accepted"}, // Remaining Length wins
		{"3.1 flags in the fixed header", flagged(connect31(2, id)), nil, "accepted"},
		{"3.1.1 flags in the fixed header", flagged(connect311(2, id)), nil, "malformed"},
		{"5.0 flags in the fixed header", flagged(connect5(2, nil, id)), connack5(0x81), "malformed"},
		{"3.1 reserved connect flag", connect31(3, id), nil, "accepted"},
		{"3.1.1 reserved connect flag", connect311(3, id), nil, "malformed"},
		{"5.0 reserved connect flag", connect5(3, nil, id), connack5(0x81), "malformed"},
		{"3.1.1 will QoS 3", will(0x1E), nil, "malformed"},
		{"5.0 will QoS 3", will5(0x1E, nil, "t"), connack5(0x81), "malformed"},
		{"3.1.1 will QoS without will", connect311(0x0A, id), nil, "malformed"},
		{"5.0 will QoS without will", connect5(0x0A, nil, id), connack5(0x81), "malformed"},
		{"3.1.1 will retain without will", connect311(0x22, id), nil, "malformed"},
		{"5.0 will retain without will", connect5(0x22, nil, id), connack5(0x81), "malformed"},
		{"3.1 bridge bit", connect("MQIsdp", 0x83, 2, id), connack3(1), "bad_level"},
		{"3.1.1 bridge bit", connect("MQTT", 0x84, 2, id), connack3(1), "bad_level"},
		{"5.0 bridge bit", connect("MQTT", 0x85, 2, []byte{0}, id), connack5(0x84), "bad_level"},
		{"3.1.1 over-long length", overlong(connect311(2, id)), nil, "accepted"}, // the rule is of 5.0
		{"5.0 over-long length", overlong(connect5(2, nil, id)), connack5(0x81), "bad_length"},
		{"5.0 over-long property length", connect("MQTT", 5, 2, []byte{0x80, 0}, id), connack5(0x81), "malformed"},
		{"3.1.1 will topic not UTF-8", connect311(6, id, text("\xff"), text("w")), nil, "bad_utf8"},
		{"5.0 will topic not UTF-8", will5(6, nil, "\xff"), connack5(0x81), "bad_utf8"},
		{"3.1.1 will topic with a wildcard", connect311(6, id, text("st/#"), text("w")), nil, "protocol_error"},
		{"5.0 will topic with a wildcard", will5(6, nil, "st/#"), connack5(0x90), "protocol_error"},
		{"5.0 user property not UTF-8", connect5(2, append([]byte{0x26}, append(text("k"), text("\xff")...)...), id), connack5(0x81), "bad_utf8"},
		{"5.0 property of CONNACK", connect5(2, []byte{0x13, 0, 60}, id), connack5(0x81), "malformed"},
		{"5.0 property of the will", connect5(2, []byte{0x18, 0, 0, 0, 30}, id), connack5(0x81), "malformed"},
		{"5.0 CONNECT property in the will", will5(6, []byte{0x11, 0, 0, 0, 30}, "t"), connack5(0x81), "malformed"},
		{"5.0 property twice", connect5(2, []byte{0x21, 0, 5, 0x21, 0, 6}, id), connack5(0x82), "protocol_error"},
		{"5.0 user property twice", connect5(2, bytes.Repeat(append([]byte{0x26}, append(text("k"), text("v")...)...), 2), id), nil, "accepted"},
		{"5.0 Receive Maximum 0", connect5(2, []byte{0x21, 0, 0}, id), connack5(0x82), "protocol_error"},
		{"5.0 Maximum Packet Size 0", connect5(2, []byte{0x27, 0, 0, 0, 0}, id), connack5(0x82), "protocol_error"},
		{"5.0 Request Problem Information 2", connect5(2, []byte{0x17, 2}, id), connack5(0x82), "protocol_error"},
		{"5.0 Authentication Data without Method", connect5(2, append([]byte{0x16}, text("data")...), id), connack5(0x82), "protocol_error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d.accepted(t, lenient, tt.send)
			if tt.result == "accepted" {
				d.accepted(t, strict, tt.send)
			} else {
				d.refused(t, strict, tt.send, false, tt.want, tt.result)
			}
		})
	}
}

// TestRefusedDevices goes through the refusals that the tables decide, in each version, strict or not; nobody is written down for it.
func TestRefusedDevices(t *testing.T) {
	d := newDoorstep(t)
	d.static("dead", "127.0.0.1:1") // nothing listens there
	port, err := harness.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.operator().PutCluster(d.ctx, "empty", client.ClusterSpec{
		Driver: "emqx", ManagementURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", port[0])}, Credential: "file:" + d.key,
	}, client.WriteOptions{WaitAll: true})
	if err != nil {
		t.Fatal(err)
	}
	d.policy(client.PolicyPut{Policy: "refuse"})
	d.assign("in-dead", "dead")
	d.assign("in-empty", "empty")
	d.assign("blocked", "taking")
	d.assign("served", "taking")
	blocked, none := true, ""
	for key, patch := range map[string]client.DevicePatch{"blocked": {Blocked: &blocked}, "blocked stranger": {Blocked: &blocked, Cluster: &none}} {
		if r, err := d.operator().PatchDevice(d.ctx, key, patch, client.WriteOptions{WaitAll: true}); err != nil || len(r.Lagging) > 0 {
			t.Fatalf("block: %v, lagging %v", err, r.Lagging)
		}
	}
	before := d.sameTables().Devices
	for _, tt := range []struct {
		id           string
		code3, code5 byte
		result       string
	}{
		{"stranger", 5, 0x87, "unknown_device"},
		{"", 5, 0x87, "unknown_device"},
		{"blocked", 5, 0x8A, "blocked"},
		{"blocked stranger", 5, 0x8A, "blocked"},
		{"in-empty", 3, 0x88, "no_node"},
		{"in-dead", 3, 0x88, "unavailable"},
	} {
		for _, gateway := range []int{lenient, strict} {
			mode := []string{"lenient", "strict"}[gateway]
			t.Run(tt.id+" in 3.1, "+mode, func(t *testing.T) {
				if tt.id == "" && gateway == strict {
					d.refused(t, gateway, connect31(2, text(tt.id)), false, connack3(2), "client_id_rejected")
					return
				}
				d.refused(t, gateway, connect31(2, text(tt.id)), false, connack3(tt.code3), tt.result)
			})
			t.Run(tt.id+" in 3.1.1, "+mode, func(t *testing.T) {
				d.refused(t, gateway, connect311(2, text(tt.id)), false, connack3(tt.code3), tt.result)
			})
			t.Run(tt.id+" in 5.0, "+mode, func(t *testing.T) {
				d.refused(t, gateway, connect5(2, nil, text(tt.id)), false, connack5(tt.code5), tt.result)
			})
		}
	}
	for want, packet := range map[string][]byte{string(connack3(5)): connect311(2, text("stranger")), string(connack5(0x87)): connect5(2, nil, text("stranger"))} {
		d.goesOn(t, packet, []byte(want), "unknown_device")
	}
	d.accepted(t, lenient, connect311(2, text("served")))
	if after := d.sameTables().Devices; after != before {
		t.Errorf("%d devices before the refusals, %d after", before, after)
	}
	if _, err := d.operator().Device(d.ctx, "stranger"); !isNotFound(err) {
		t.Errorf("a refused device has a record: %v", err)
	}
}

// goesOn refuses a device that sends much behind its CONNECT and does not stop when it is answered: the gateway reads on for a moment instead
// of closing with bytes unread, since that would reset the connection, and with many TCP stacks take the CONNACK away.
func (d *doorstep) goesOn(t *testing.T, packet, want []byte, result string) {
	t.Helper()
	c, err := net.Dial("tcp", d.fleet.Gateways()[lenient].MQTT())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(append(bytes.Clone(packet), bytes.Repeat([]byte{0xC0, 0}, 20_000)...)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("answer % x, %v; want % x", got, err, want)
	}
	for i := range 500 {
		if _, err := c.Write(bytes.Repeat([]byte{0xC0, 0}, 50)); err != nil {
			t.Errorf("write %d behind the refusal: %v", i, err)
			break
		}
	}
	_ = c.Close()
	d.counted(t, lenient, result)
}
