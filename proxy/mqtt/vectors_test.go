package mqtt

import "bytes"

// vector is a CONNECT, byte by byte, with what it means.
type vector struct {
	name   string
	packet []byte
	want   Connect
	// strict is the reason for which a strict parser refuses it, if it does.
	strict Reason
}

// join puts the annotated pieces of a packet together.
func join(pieces ...[]byte) []byte { return bytes.Join(pieces, nil) }

func b(v ...byte) []byte { return v }

func s(v string) []byte { return []byte(v) }

// plain is what a CONNECT with client identifier m-0417 and keep alive 60 gives
// when nothing else is in it.
func plain(v Version, change func(*Connect)) Connect {
	c := Connect{
		Version: v, CleanStart: true, KeepAlive: 60, ClientID: []byte("m-0417"),
		ReceiveMaximum: 65535, RequestProblemInfo: true,
	}
	if change != nil {
		change(&c)
	}
	return c
}

func withLogin(c *Connect) {
	c.HasUsername, c.Username = true, []byte("plant7")
	c.HasPassword, c.Password = true, []byte("k9!x")
}

func vectors31() []vector {
	return []vector{
		{
			name: "3.1 clean",
			packet: join(
				b(0x10, 0x14),              // CONNECT, 20 bytes follow
				b(0x00, 0x06), s("MQIsdp"), // protocol name
				b(0x03),                    // level 3
				b(0x02),                    // flags: clean session
				b(0x00, 0x3C),              // keep alive 60 s
				b(0x00, 0x06), s("m-0417"), // client identifier
			),
			want: plain(V31, nil),
		}, {
			name: "3.1 bridge",
			packet: join(
				b(0x10, 0x16),              // CONNECT, 22 bytes follow
				b(0x00, 0x06), s("MQIsdp"), // protocol name
				b(0x83),                      // level 3 with the bridge bit
				b(0x02),                      // flags: clean session
				b(0x00, 0x3C),                // keep alive 60 s
				b(0x00, 0x08), s("br-site7"), // client identifier
			),
			want:   plain(V31, func(c *Connect) { c.Bridge, c.ClientID = true, []byte("br-site7") }),
			strict: ReasonBadLevel,
		},
	}
}

func vectors311() []vector {
	return []vector{
		{
			name: "3.1.1 clean",
			packet: join(
				b(0x10, 0x12),            // CONNECT, 18 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x04),                    // level 4
				b(0x02),                    // flags: clean session
				b(0x00, 0x3C),              // keep alive 60 s
				b(0x00, 0x06), s("m-0417"), // client identifier
			),
			want: plain(V311, nil),
		}, {
			name: "3.1.1 user name and password",
			packet: join(
				b(0x10, 0x20),            // CONNECT, 32 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x04),                    // level 4
				b(0xC2),                    // flags: user name, password, clean session
				b(0x00, 0x3C),              // keep alive 60 s
				b(0x00, 0x06), s("m-0417"), // client identifier
				b(0x00, 0x06), s("plant7"), // user name
				b(0x00, 0x04), s("k9!x"), // password
			),
			want: plain(V311, withLogin),
		}, {
			name: "3.1.1 will",
			packet: join(
				b(0x10, 0x30),            // CONNECT, 48 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x04),                    // level 4
				b(0xEE),                    // flags: user name, password, will retain, will QoS 1, will, clean session
				b(0x01, 0x2C),              // keep alive 300 s
				b(0x00, 0x06), s("m-0417"), // client identifier
				b(0x00, 0x09), s("st/m-0417"), // will topic
				b(0x00, 0x03), s("off"), // will payload
				b(0x00, 0x06), s("plant7"), // user name
				b(0x00, 0x04), s("k9!x"), // password
			),
			want: plain(V311, func(c *Connect) {
				withLogin(c)
				c.KeepAlive, c.HasWill = 300, true
				c.Will = Will{Topic: []byte("st/m-0417"), Payload: []byte("off"), QoS: 1, Retain: true}
			}),
		}, {
			name: "3.1.1 empty client identifier, clean",
			packet: join(
				b(0x10, 0x0C),            // CONNECT, 12 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x04),       // level 4
				b(0x02),       // flags: clean session
				b(0x00, 0x3C), // keep alive 60 s
				b(0x00, 0x00), // empty client identifier
			),
			want: plain(V311, func(c *Connect) { c.ClientID = nil }),
		}, {
			name: "3.1.1 bridge",
			packet: join(
				b(0x10, 0x14),            // CONNECT, 20 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x84),                      // level 4 with the bridge bit
				b(0x02),                      // flags: clean session
				b(0x00, 0x3C),                // keep alive 60 s
				b(0x00, 0x08), s("br-site7"), // client identifier
			),
			want:   plain(V311, func(c *Connect) { c.Bridge, c.ClientID = true, []byte("br-site7") }),
			strict: ReasonBadLevel,
		}, {
			name: "3.1.1 password only",
			packet: join(
				b(0x10, 0x18),            // CONNECT, 24 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x04),                    // level 4
				b(0x42),                    // flags: password, clean session
				b(0x00, 0x3C),              // keep alive 60 s
				b(0x00, 0x06), s("m-0417"), // client identifier
				b(0x00, 0x04), s("k9!x"), // password
			),
			want:   plain(V311, func(c *Connect) { c.HasPassword, c.Password = true, []byte("k9!x") }),
			strict: ReasonMalformed,
		},
	}
}

func vectors5() []vector {
	return []vector{
		{
			name: "5.0 minimal",
			packet: join(
				b(0x10, 0x13),            // CONNECT, 19 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x05),                    // level 5
				b(0x02),                    // flags: clean start
				b(0x00, 0x3C),              // keep alive 60 s
				b(0x00),                    // no properties
				b(0x00, 0x06), s("m-0417"), // client identifier
			),
			want: plain(V5, nil),
		}, {
			name: "5.0 limits",
			packet: join(
				b(0x10, 0x20),            // CONNECT, 32 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x05),                         // level 5
				b(0x00),                         // flags: none
				b(0x00, 0x3C),                   // keep alive 60 s
				b(0x0D),                         // 13 bytes of properties
				b(0x11, 0x00, 0x00, 0x0E, 0x10), // Session Expiry Interval 3600 s
				b(0x21, 0x00, 0x14),             // Receive Maximum 20
				b(0x27, 0x00, 0x01, 0x00, 0x00), // Maximum Packet Size 65536
				b(0x00, 0x06), s("m-0417"),      // client identifier
			),
			want: plain(V5, func(c *Connect) {
				c.CleanStart, c.SessionExpiry, c.ReceiveMaximum, c.MaximumPacketSize = false, 3600, 20, 65536
				c.Properties = Properties("\x11\x00\x00\x0E\x10\x21\x00\x14\x27\x00\x01\x00\x00")
			}),
		}, {
			name: "5.0 will",
			packet: join(
				b(0x10, 0x48),            // CONNECT, 72 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x05),                                               // level 5
				b(0xEC),                                               // flags: user name, password, will retain, will QoS 1, will
				b(0x00, 0x3C),                                         // keep alive 60 s
				b(0x0F),                                               // 15 bytes of properties
				b(0x11, 0x00, 0x00, 0x0E, 0x10),                       // Session Expiry Interval 3600 s
				b(0x26, 0x00, 0x04), s("site"), b(0x00, 0x01), s("7"), // User Property site=7
				b(0x00, 0x06), s("m-0417"), // client identifier
				b(0x07),                         // 7 bytes of will properties
				b(0x18, 0x00, 0x00, 0x00, 0x1E), // Will Delay Interval 30 s
				b(0x01, 0x01),                   // Payload Format Indicator: UTF-8
				b(0x00, 0x09), s("st/m-0417"),   // will topic
				b(0x00, 0x03), s("off"), // will payload
				b(0x00, 0x06), s("plant7"), // user name
				b(0x00, 0x04), s("k9!x"), // password
			),
			want: plain(V5, func(c *Connect) {
				withLogin(c)
				c.CleanStart, c.SessionExpiry, c.HasWill = false, 3600, true
				c.Properties = Properties("\x11\x00\x00\x0E\x10\x26\x00\x04site\x00\x017")
				c.Will = Will{
					Topic: []byte("st/m-0417"), Payload: []byte("off"), QoS: 1, Retain: true, DelayInterval: 30,
					Properties: Properties("\x18\x00\x00\x00\x1E\x01\x01"),
				}
			}),
		}, {
			name: "5.0 empty client identifier",
			packet: join(
				b(0x10, 0x0D),            // CONNECT, 13 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x05),       // level 5
				b(0x02),       // flags: clean start
				b(0x00, 0x3C), // keep alive 60 s
				b(0x00),       // no properties
				b(0x00, 0x00), // empty client identifier
			),
			want: plain(V5, func(c *Connect) { c.ClientID = nil }),
		}, {
			name: "5.0 password only",
			packet: join(
				b(0x10, 0x19),            // CONNECT, 25 bytes follow
				b(0x00, 0x04), s("MQTT"), // protocol name
				b(0x05),                    // level 5
				b(0x42),                    // flags: password, clean start
				b(0x00, 0x3C),              // keep alive 60 s
				b(0x00),                    // no properties
				b(0x00, 0x06), s("m-0417"), // client identifier
				b(0x00, 0x04), s("k9!x"), // password
			),
			want: plain(V5, func(c *Connect) { c.HasPassword, c.Password = true, []byte("k9!x") }),
		},
	}
}

func vectors() []vector {
	return append(append(vectors31(), vectors311()...), vectors5()...)
}

// packet builds any packet with a correct remaining length.
func packet(first byte, body ...[]byte) []byte {
	all := join(body...)
	return append(appendUvarint([]byte{first}, len(all)), all...)
}

func str(v string) []byte { return append(b(byte(len(v)>>8), byte(len(v))), v...) }

// connect builds a CONNECT: name, level and flags, keep alive 60, then the rest.
func connect(name string, level, flags byte, rest ...[]byte) []byte {
	return packet(0x10, str(name), b(level, flags, 0, 60), join(rest...))
}

// props builds a property list with its length.
func props(entries ...[]byte) []byte {
	all := join(entries...)
	return append(appendUvarint(nil, len(all)), all...)
}
