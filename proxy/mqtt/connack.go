package mqtt

import (
	"strings"
	"unicode/utf8"
)

// AppendConnack appends the CONNACK that refuses a client of version v and
// returns the extended slice. It appends nothing where the connection is to be
// closed without a word (see [Refusal.Code]). After it the caller closes the
// connection ([MQTT-3.2.2-5], 5.0 [MQTT-3.2.2-7]).
//
// reasonString and serverReference are for 5.0 and may be empty; the second is
// written for [RefuseUseAnotherServer] and [RefuseServerMoved] only (§3.2.2.3.16).
// maxPacket is the client's Maximum Packet Size in bytes, 0 = no limit: the
// reason string is left out first, then the server reference, then everything
// (5.0 [MQTT-3.2.2-19], [MQTT-3.1.2-24]).
func AppendConnack(dst []byte, v Version, r Refusal, reasonString, serverReference string, maxPacket uint32) []byte {
	code := r.Code(v)
	switch {
	case code == 0:
		return dst
	case v != V5:
		return append(dst, byte(CONNACK)<<4, 2, 0, code)
	}
	return appendCoded(dst, CONNACK, []byte{0, code}, reasonString, serverReference, maxPacket)
}

// appendCoded appends a packet that ends in a reason code and properties. The
// last byte of head is the code.
func appendCoded(dst []byte, t PacketType, head []byte, reasonString, serverReference string, maxPacket uint32) []byte {
	code := head[len(head)-1]
	if code != CodeUseAnotherServer && code != CodeServerMoved || !sendable(serverReference) {
		serverReference = ""
	}
	if !sendable(reasonString) {
		reasonString = ""
	}
	props, remaining := codedSize(head, reasonString, serverReference)
	if tooLarge(remaining, maxPacket) {
		reasonString = ""
		props, remaining = codedSize(head, reasonString, serverReference)
	}
	if tooLarge(remaining, maxPacket) {
		serverReference = ""
		props, remaining = codedSize(head, reasonString, serverReference)
	}
	if tooLarge(remaining, maxPacket) {
		return dst
	}
	dst = append(dst, byte(t)<<4)
	dst = appendUvarint(dst, remaining)
	dst = append(dst, head...)
	dst = appendUvarint(dst, props)
	dst = appendStringProperty(dst, propReasonString, reasonString)
	return appendStringProperty(dst, propServerReference, serverReference)
}

func codedSize(head []byte, texts ...string) (props, remaining int) {
	for _, s := range texts {
		if s != "" {
			props += 3 + len(s)
		}
	}
	return props, len(head) + uvarintLen(props) + props
}

func tooLarge(remaining int, maxPacket uint32) bool {
	return maxPacket > 0 && uint64(1+uvarintLen(remaining)+remaining) > uint64(maxPacket)
}

// sendable keeps text out of the packet that the client would have to treat as
// malformed.
func sendable(s string) bool {
	return len(s) <= maxStringLen && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

func appendStringProperty(dst []byte, id byte, s string) []byte {
	if s == "" {
		return dst
	}
	dst = append(dst, id, byte(len(s)>>8), byte(len(s)))
	return append(dst, s...)
}

// Connack is what a broker answered. Its slices point into the packet that was
// given to [ParseConnack].
type Connack struct {
	// Version is the form of the packet: that of the client, except that a
	// broker without 5.0 answers a 5.0 client in 3.x form (V311 here).
	Version        Version
	SessionPresent bool // false in 3.1, where the bit has no meaning
	Code           byte // 5.0 reason code or 3.x return code

	// 5.0 (§3.2.2.3); Has… where 0 is a value of its own.
	HasSessionExpiry   bool
	SessionExpiry      uint32 // seconds; the broker overrules the client
	HasServerKeepAlive bool
	ServerKeepAlive    uint16 // seconds; the client must use it instead of its own
	ReceiveMaximum     uint16 // packets, default 65535
	MaximumPacketSize  uint32 // bytes, 0 = no limit
	TopicAliasMaximum  uint16
	AssignedClientID   []byte // nil unless the broker chose the identifier
	ReasonString       []byte
	ServerReference    []byte
	Properties         Properties
}

// Success tells whether the broker accepted the client.
func (c Connack) Success() bool { return c.Code == CodeSuccess }

// CannotServe tells whether the refusal is about this broker node (or its
// cluster) and not about the client, so that another node may be asked: 5.0
// server unavailable, busy, use another server, server moved; 3.x server
// unavailable.
func (c Connack) CannotServe() bool {
	if c.Version != V5 {
		return c.Code == ReturnServerUnavailable
	}
	switch c.Code {
	case CodeServerUnavailable, CodeServerBusy, CodeUseAnotherServer, CodeServerMoved:
		return true
	}
	return false
}

// ParseConnack parses a complete CONNACK (see [PacketLength]) that answers a
// client of version v. It judges only what is needed to read it, since the
// packet goes to the client unchanged. The error is a *ParseError with reason
// bad_length or malformed; Code and SessionPresent are then filled as far as
// they were readable.
func ParseConnack(packet []byte, v Version) (Connack, error) {
	c := Connack{Version: v, ReceiveMaximum: 65535}
	total, ok, err := PacketLength(packet, 0)
	switch {
	case err != nil:
		return c, err
	case !ok || total != len(packet):
		return c, newParseError(ReasonBadLength, 0, v, "packet differs from its announced length")
	case TypeOf(packet[0]) != CONNACK:
		return c, newParseError(ReasonMalformed, 0, v, "packet is not a CONNACK")
	}
	_, n := uvarint(packet[1:])
	in := cursor{rest: packet[1+n:]}
	flags, _ := in.u8()
	if c.Code, ok = in.u8(); !ok {
		return c, newParseError(ReasonMalformed, 0, v, "CONNACK without a code")
	}
	c.SessionPresent = v != V31 && flags&1 != 0
	if v == V5 && len(in.rest) == 0 {
		c.Version = V311
	}
	if c.Version != V5 {
		if len(in.rest) > 0 {
			return c, newParseError(ReasonMalformed, 0, v, "CONNACK has bytes behind its code")
		}
		return c, nil
	}
	if !c.properties(&in) {
		return c, newParseError(ReasonMalformed, 0, v, "CONNACK properties are not readable")
	}
	return c, nil
}

func (c *Connack) properties(in *cursor) bool {
	list, _, ok := in.propertyList()
	if !ok || len(in.rest) > 0 {
		return false
	}
	c.Properties = list
	for in := (cursor{rest: list}); len(in.rest) > 0; {
		prop, ok := in.nextProperty()
		if !ok {
			return false
		}
		switch prop.id {
		case propSessionExpiry:
			c.HasSessionExpiry, c.SessionExpiry = true, prop.num
		case propServerKeepAlive:
			c.HasServerKeepAlive, c.ServerKeepAlive = true, uint16(prop.num)
		case propReceiveMaximum:
			c.ReceiveMaximum = uint16(prop.num)
		case propMaximumPacketSize:
			c.MaximumPacketSize = prop.num
		case propTopicAliasMaximum:
			c.TopicAliasMaximum = uint16(prop.num)
		case propAssignedClientID:
			c.AssignedClientID = prop.text
		case propReasonString:
			c.ReasonString = prop.text
		case propServerReference:
			c.ServerReference = prop.text
		}
	}
	return true
}
