package mqtt

// AppendDisconnect appends the DISCONNECT with which the gateway ends the
// session of an established client, and returns the extended slice. It belongs
// on a packet boundary (see [Framer]), behind a successful CONNACK only (5.0
// [MQTT-3.14.0-1]). To a 3.x client it appends nothing, because there a server
// has no DISCONNECT and can only close; towards a broker use [ClientDisconnect].
//
// code is a 5.0 reason code that is legal there (§3.14.2.1), such as
// [CodeServerShuttingDown]. reasonString and serverReference may be empty; the
// second is written with [CodeUseAnotherServer] and [CodeServerMoved] only.
// maxPacket is the client's Maximum Packet Size in bytes, 0 = no limit: what
// does not fit is left out, and nothing is appended if three bytes are too many.
func AppendDisconnect(dst []byte, v Version, code byte, reasonString, serverReference string, maxPacket uint32) []byte {
	if v != V5 {
		return dst
	}
	// The empty property length may be left out (§3.14.2.2.1); decoders know the
	// longer form better, so the shorter one is only for tiny limits.
	if maxPacket == 3 {
		return append(dst, byte(DISCONNECT)<<4, 1, code)
	}
	return appendCoded(dst, DISCONNECT, []byte{code}, reasonString, serverReference, maxPacket)
}

// ClientDisconnect is what the gateway, as a client, sends to a broker to
// abandon a session so that no will is published (3.1.1 [MQTT-3.14.4-3], 5.0
// §3.14.4). It is the same in all versions: 5.0 implies reason code 0x00, and
// without a Session Expiry Interval the one of the CONNECT stays in force.
func ClientDisconnect(Version) []byte { return []byte{byte(DISCONNECT) << 4, 0} }
