package mqtt

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"unicode/utf8"
)

// Version is the protocol level of a CONNECT without the bridge bit. Zero means
// that the version is not known.
type Version byte

// The protocol levels of the three versions.
const (
	V31  Version = 3 // MQTT 3.1, protocol name MQIsdp
	V311 Version = 4 // MQTT 3.1.1
	V5   Version = 5 // MQTT 5.0
)

// String gives "3.1", "3.1.1", "5.0" or "unknown".
func (v Version) String() string {
	switch v {
	case V31:
		return "3.1"
	case V311:
		return "3.1.1"
	case V5:
		return "5.0"
	}
	return "unknown"
}

// PacketType is the upper half of a packet's first byte (3.1.1 §2.2.1).
type PacketType byte

// The control packets.
const (
	CONNECT     PacketType = 1
	CONNACK     PacketType = 2
	PUBLISH     PacketType = 3
	PUBACK      PacketType = 4
	PUBREC      PacketType = 5
	PUBREL      PacketType = 6
	PUBCOMP     PacketType = 7
	SUBSCRIBE   PacketType = 8
	SUBACK      PacketType = 9
	UNSUBSCRIBE PacketType = 10
	UNSUBACK    PacketType = 11
	PINGREQ     PacketType = 12
	PINGRESP    PacketType = 13
	DISCONNECT  PacketType = 14
	AUTH        PacketType = 15 // 5.0 only
)

// TypeOf is the packet type in the first byte of a packet.
func TypeOf(first byte) PacketType { return PacketType(first >> 4) }

// String gives the name of the standard, for example "PUBLISH".
func (t PacketType) String() string {
	switch t {
	case CONNECT:
		return "CONNECT"
	case CONNACK:
		return "CONNACK"
	case PUBLISH:
		return "PUBLISH"
	case PUBACK:
		return "PUBACK"
	case PUBREC:
		return "PUBREC"
	case PUBREL:
		return "PUBREL"
	case PUBCOMP:
		return "PUBCOMP"
	case SUBSCRIBE:
		return "SUBSCRIBE"
	case SUBACK:
		return "SUBACK"
	case UNSUBSCRIBE:
		return "UNSUBSCRIBE"
	case UNSUBACK:
		return "UNSUBACK"
	case PINGREQ:
		return "PINGREQ"
	case PINGRESP:
		return "PINGRESP"
	case DISCONNECT:
		return "DISCONNECT"
	case AUTH:
		return "AUTH"
	}
	return "reserved " + strconv.Itoa(int(t))
}

// MaxRemainingLength is the largest value of four length bytes (3.1.1 §2.2.3).
const MaxRemainingLength = 268_435_455

// maxStringLen is the longest string or binary field (3.1.1 §1.5.3).
const maxStringLen = 65_535

// uvarint reads a variable byte integer (5.0 §1.5.5) at the front of buf. n is
// its length in bytes, 0 when more bytes are needed, and -1 when a fourth byte
// announces a fifth, which no length may have.
func uvarint(buf []byte) (value, n int) {
	for i := 0; i < len(buf) && i < 4; i++ {
		value |= int(buf[i]&0x7F) << (7 * i)
		if buf[i] < 0x80 {
			return value, i + 1
		}
	}
	if len(buf) >= 4 {
		return 0, -1
	}
	return 0, 0
}

// overlong tells whether an integer of n bytes would have fitted into fewer:
// its last byte then carries no bits.
func overlong(encoded []byte, n int) bool { return n > 1 && encoded[n-1] == 0 }

func appendUvarint(dst []byte, value int) []byte {
	for value >= 0x80 {
		dst = append(dst, byte(value)|0x80)
		value >>= 7
	}
	return append(dst, byte(value))
}

func uvarintLen(value int) int {
	n := 1
	for value >= 0x80 {
		value >>= 7
		n++
	}
	return n
}

// validText is the rule for UTF-8 strings in all versions: well-formed, no
// surrogates, no U+0000 (3.1.1 [MQTT-1.5.3-1, -2], 5.0 [MQTT-1.5.4-1, -2]).
func validText(b []byte) bool {
	return bytes.IndexByte(b, 0) < 0 && utf8.Valid(b)
}

// cursor takes fields from the front of a packet. Every method answers false,
// and takes nothing, when the rest is too short.
type cursor struct{ rest []byte }

func (c *cursor) bytes(n int) ([]byte, bool) {
	if n > len(c.rest) {
		return nil, false
	}
	// The capacity is cut so that appending to a field never writes into the
	// packet that is still to be forwarded.
	b := c.rest[:n:n]
	c.rest = c.rest[n:]
	return b, true
}

func (c *cursor) u8() (byte, bool) {
	if len(c.rest) < 1 {
		return 0, false
	}
	b := c.rest[0]
	c.rest = c.rest[1:]
	return b, true
}

func (c *cursor) u16() (uint16, bool) {
	if len(c.rest) < 2 {
		return 0, false
	}
	v := binary.BigEndian.Uint16(c.rest)
	c.rest = c.rest[2:]
	return v, true
}

// field takes a string or binary field: two bytes of length, then the bytes.
func (c *cursor) field() ([]byte, bool) {
	if len(c.rest) < 2 {
		return nil, false
	}
	end := 2 + int(binary.BigEndian.Uint16(c.rest))
	if end > len(c.rest) {
		return nil, false
	}
	b := c.rest[2:end:end]
	c.rest = c.rest[end:]
	return b, true
}
