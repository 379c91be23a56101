package mqtt

import (
	"encoding/binary"
	"iter"
)

// Property identifiers of MQTT 5.0 (§2.2.2.2) that this package names.
const (
	propPayloadFormat     = 0x01
	propResponseTopic     = 0x08
	propSessionExpiry     = 0x11
	propAssignedClientID  = 0x12
	propServerKeepAlive   = 0x13
	propAuthMethod        = 0x15
	propAuthData          = 0x16
	propRequestProblem    = 0x17
	propWillDelay         = 0x18
	propRequestResponse   = 0x19
	propServerReference   = 0x1C
	propReasonString      = 0x1F
	propReceiveMaximum    = 0x21
	propTopicAliasMaximum = 0x22
	propUser              = 0x26
	propMaximumPacketSize = 0x27
)

// Which properties a CONNECT and a will may carry (5.0 §3.1.2.11, §3.1.3.2): one
// bit for each identifier, all of which are below 64.
const (
	connectProperties uint64 = 1<<propSessionExpiry | 1<<propAuthMethod | 1<<propAuthData | 1<<propRequestProblem |
		1<<propRequestResponse | 1<<propReceiveMaximum | 1<<propTopicAliasMaximum | 1<<propUser | 1<<propMaximumPacketSize
	willProperties uint64 = 1<<propPayloadFormat | 1<<0x02 | 1<<0x03 | 1<<propResponseTopic | 1<<0x09 |
		1<<propWillDelay | 1<<propUser
)

type propertyKind uint8

const (
	kindUnknown propertyKind = iota
	kindByte
	kindU16
	kindU32
	kindVarint
	kindString
	kindBinary
	kindPair
)

// kindOf is the width table of 5.0 §2.2.2.2.
func kindOf(id byte) propertyKind {
	switch id {
	case 0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A:
		return kindByte
	case 0x13, 0x21, 0x22, 0x23:
		return kindU16
	case 0x02, 0x11, 0x18, 0x27:
		return kindU32
	case 0x0B:
		return kindVarint
	case 0x03, 0x08, 0x12, 0x15, 0x1A, 0x1C, 0x1F:
		return kindString
	case 0x09, 0x16:
		return kindBinary
	case 0x26:
		return kindPair
	}
	return kindUnknown
}

// property is one entry of a list: num for numbers, text for strings and
// binary data, and text with value for a user property.
type property struct {
	id    byte
	kind  propertyKind
	num   uint32
	text  []byte
	value []byte
}

// nextProperty takes one property. It fails on an unknown identifier, whose
// width nobody knows, and on a value that runs past the list. Identifiers are
// variable byte integers, but all that exist take one byte.
func (c *cursor) nextProperty() (p property, ok bool) {
	if p.id, ok = c.u8(); !ok {
		return p, false
	}
	p.kind = kindOf(p.id)
	switch p.kind {
	case kindByte:
		var b byte
		b, ok = c.u8()
		p.num = uint32(b)
	case kindU16:
		var v uint16
		v, ok = c.u16()
		p.num = uint32(v)
	case kindU32:
		var b []byte
		if b, ok = c.bytes(4); ok {
			p.num = binary.BigEndian.Uint32(b)
		}
	case kindVarint:
		value, n := uvarint(c.rest)
		if ok = n > 0; ok {
			p.num = uint32(value)
			c.rest = c.rest[n:]
		}
	case kindString, kindBinary:
		p.text, ok = c.field()
	case kindPair:
		if p.text, ok = c.field(); ok {
			p.value, ok = c.field()
		}
	default:
		ok = false
	}
	return p, ok
}

// propertyList takes the length and the bytes of a list. minimal is false when
// the length was written with more bytes than it needs.
func (c *cursor) propertyList() (list []byte, minimal, ok bool) {
	size, n := uvarint(c.rest)
	if n <= 0 || n+size > len(c.rest) {
		return nil, false, false
	}
	minimal = !overlong(c.rest, n)
	c.rest = c.rest[n:]
	list, ok = c.bytes(size)
	return list, minimal, ok
}

// Properties is the property list of a 5.0 packet as it stood there, without
// its length.
type Properties []byte

// User yields the user properties, name and value, in their order. It stops at
// the first entry that cannot be read.
func (p Properties) User() iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		c := cursor{rest: p}
		for len(c.rest) > 0 {
			entry, ok := c.nextProperty()
			if !ok {
				return
			}
			if entry.id == propUser && !yield(entry.text, entry.value) {
				return
			}
		}
	}
}
