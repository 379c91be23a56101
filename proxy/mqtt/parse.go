package mqtt

import (
	"bytes"
	"unicode/utf8"
)

// maxIDChars31 is the longest client identifier of MQTT 3.1, in characters.
const maxIDChars31 = 23

// ParseConnect parses a complete CONNECT packet, fixed header included. packet
// must hold exactly the bytes that [ConnectLength] announced. strict refuses
// everything that the standard forbids; the package comment lists what each
// mode lets through. A strict success is a lenient success with the same
// result. The error is a *ParseError; then the Connect is empty.
func ParseConnect(packet []byte, strict bool) (Connect, error) {
	total, err := ConnectLength(packet, 0)
	if err != nil {
		return Connect{}, err
	}
	if total == 0 || total != len(packet) {
		return Connect{}, newParseError(ReasonBadLength, 0, 0, "packet differs from its announced length")
	}
	_, n := uvarint(packet[1:])
	p := connectParser{cursor: cursor{rest: packet[1+n:]}, strict: strict}
	p.c.ReceiveMaximum = 65535
	p.c.RequestProblemInfo = true
	if err := p.variableHeader(packet[:1+n]); err != nil {
		return Connect{}, err
	}
	if err := p.payload(); err != nil {
		return Connect{}, err
	}
	return p.c, nil
}

// connectParser walks through one packet. Its methods return *ParseError, nil
// when all is well; an error interface is made of it in ParseConnect only.
type connectParser struct {
	cursor
	c      Connect
	flags  byte
	strict bool
}

func (p *connectParser) fail(reason Reason, refusal Refusal, detail string) *ParseError {
	e := newParseError(reason, refusal, p.c.Version, detail)
	e.MaximumPacketSize = p.c.MaximumPacketSize
	return e
}

func (p *connectParser) malformed(detail string) *ParseError {
	return p.fail(ReasonMalformed, RefuseMalformed, detail)
}

func (p *connectParser) protocolError(detail string) *ParseError {
	return p.fail(ReasonProtocolError, RefuseProtocolError, detail)
}

// variableHeader reads protocol name to properties (3.1.1 §3.1.2, 5.0 §3.1.2).
// fixed is the fixed header, whose breaches are answered only here, where the
// version is known.
func (p *connectParser) variableHeader(fixed []byte) *ParseError {
	if err := p.nameAndLevel(); err != nil {
		return err
	}
	v := p.c.Version
	if p.strict && v != V31 && fixed[0] != byte(CONNECT)<<4 {
		return p.malformed("flags in the fixed header")
	}
	if p.strict && v == V5 && overlong(fixed[1:], len(fixed)-1) {
		return p.fail(ReasonBadLength, RefuseMalformed, "remaining length takes more bytes than it needs")
	}
	var ok bool
	if p.flags, ok = p.u8(); !ok {
		return p.malformed("no connect flags")
	}
	if p.strict {
		if err := p.checkFlags(); err != nil {
			return err
		}
	}
	p.c.CleanStart = p.flags&flagCleanStart != 0
	if p.c.KeepAlive, ok = p.u16(); !ok {
		return p.malformed("no keep alive")
	}
	if v == V5 {
		return p.connectProperties()
	}
	return nil
}

// nameAndLevel refuses what no version has. A level that exists, but not under
// this name, is answered like an unknown one: 3.1.1 wants 0x01 ([MQTT-3.1.2-2]),
// and a Mosquitto bridge then tries again without the bridge bit.
func (p *connectParser) nameAndLevel() *ParseError {
	is31 := bytes.HasPrefix(p.rest, []byte(nameMQIsdp))
	switch {
	case is31:
		p.rest = p.rest[len(nameMQIsdp):]
	case bytes.HasPrefix(p.rest, []byte(nameMQTT)):
		p.rest = p.rest[len(nameMQTT):]
	default:
		return p.fail(ReasonBadProtocolName, 0, "protocol name is neither MQTT nor MQIsdp")
	}
	level, ok := p.u8()
	if !ok {
		return p.fail(ReasonMalformed, 0, "no protocol level")
	}
	v := Version(level &^ bridgeBit)
	if is31 && v != V31 || !is31 && v != V311 && v != V5 {
		return p.fail(ReasonBadLevel, RefuseUnsupportedVersion, "protocol level not supported")
	}
	p.c.Version = v
	p.c.Bridge = level&bridgeBit != 0
	if p.strict && p.c.Bridge {
		return p.fail(ReasonBadLevel, RefuseUnsupportedVersion, "bridge bit in the protocol level")
	}
	return nil
}

// checkFlags is for strict parsing. MQTT 3.1 has no rule for the reserved bit
// nor for the will bits without a will.
func (p *connectParser) checkFlags() *ParseError {
	v := p.c.Version
	will := p.flags&flagWill != 0
	switch {
	case v != V31 && p.flags&flagReserved != 0:
		return p.malformed("reserved connect flag")
	case v != V31 && !will && p.flags&(flagWillQoS|flagWillRetain) != 0:
		return p.malformed("will QoS or will retain without will")
	case will && p.flags&flagWillQoS == flagWillQoS:
		return p.malformed("will QoS 3")
	case v == V311 && p.flags&flagPassword != 0 && p.flags&flagUsername == 0:
		return p.malformed("password without user name")
	}
	return nil
}

// payload reads the fields in their fixed order (3.1.1 §3.1.3).
func (p *connectParser) payload() *ParseError {
	var ok bool
	if p.c.ClientID, ok = p.field(); !ok {
		return p.malformed("client identifier runs past the packet")
	}
	if err := p.checkClientID(); err != nil {
		return err
	}
	if p.flags&flagWill != 0 {
		if err := p.will(); err != nil {
			return err
		}
	}
	// In 3.1 the Remaining Length wins over the flags: a field that is not there
	// is no error.
	if p.flags&flagUsername != 0 && !p.endsEarly() {
		if p.c.Username, ok = p.field(); !ok {
			return p.malformed("user name runs past the packet")
		}
		if !validText(p.c.Username) {
			return p.fail(ReasonBadUTF8, RefuseMalformed, "user name is not UTF-8 text")
		}
		p.c.HasUsername = true
	}
	if p.flags&flagPassword != 0 && !p.endsEarly() {
		if p.c.Password, ok = p.field(); !ok {
			return p.malformed("password runs past the packet")
		}
		if p.strict && p.c.Version == V31 && !validText(p.c.Password) {
			return p.fail(ReasonBadUTF8, RefuseMalformed, "password is not UTF-8 text")
		}
		p.c.HasPassword = true
	}
	if len(p.rest) > 0 {
		return p.malformed("bytes behind the last field")
	}
	return nil
}

func (p *connectParser) endsEarly() bool { return p.c.Version == V31 && len(p.rest) == 0 }

func (p *connectParser) checkClientID() *ParseError {
	id := p.c.ClientID
	if !validText(id) {
		return p.fail(ReasonBadUTF8, RefuseMalformed, "client identifier is not UTF-8 text")
	}
	if !p.strict {
		return nil
	}
	switch {
	case p.c.Version == V31 && (len(id) == 0 || utf8.RuneCount(id) > maxIDChars31):
		return p.fail(ReasonClientIDRejected, RefuseClientID, "client identifier must have 1 to 23 characters in MQTT 3.1")
	case p.c.Version == V311 && len(id) == 0 && !p.c.CleanStart:
		return p.fail(ReasonClientIDRejected, RefuseClientID, "empty client identifier needs clean session")
	}
	return nil
}

func (p *connectParser) will() *ParseError {
	p.c.HasWill = true
	w := &p.c.Will
	w.QoS = p.flags & flagWillQoS >> 3
	w.Retain = p.flags&flagWillRetain != 0
	if p.c.Version == V5 {
		if err := p.willProperties(); err != nil {
			return err
		}
	}
	var ok bool
	if w.Topic, ok = p.field(); !ok {
		return p.malformed("will topic runs past the packet")
	}
	if w.Payload, ok = p.field(); !ok {
		return p.malformed("will payload runs past the packet")
	}
	if !p.strict {
		return nil
	}
	switch {
	case !validText(w.Topic):
		return p.fail(ReasonBadUTF8, RefuseMalformed, "will topic is not UTF-8 text")
	case !validTopicName(w.Topic):
		return p.fail(ReasonProtocolError, RefuseWillTopic, "will topic is empty or has a wildcard")
	case p.c.Version == V31 && !validText(w.Payload):
		return p.fail(ReasonBadUTF8, RefuseMalformed, "will payload is not UTF-8 text")
	}
	return nil
}

// validTopicName is 3.1.1 §4.7: at least one character, no wildcards.
func validTopicName(topic []byte) bool {
	return len(topic) > 0 && bytes.IndexByte(topic, '#') < 0 && bytes.IndexByte(topic, '+') < 0
}

// connectProperties reads 5.0 §3.1.2.11. Of a property that stands twice the
// last one counts.
func (p *connectParser) connectProperties() *ParseError {
	list, err := p.takeList()
	if err != nil {
		return err
	}
	c := &p.c
	c.Properties = list
	var seen uint64
	for in := (cursor{rest: list}); len(in.rest) > 0; {
		prop, err := p.takeProperty(&in, &seen, connectProperties)
		if err != nil {
			return err
		}
		switch prop.id {
		case propSessionExpiry:
			c.SessionExpiry = prop.num
		case propReceiveMaximum:
			c.ReceiveMaximum = uint16(prop.num)
		case propMaximumPacketSize:
			c.MaximumPacketSize = prop.num
		case propTopicAliasMaximum:
			c.TopicAliasMaximum = uint16(prop.num)
		case propRequestResponse:
			c.RequestResponseInfo = prop.num != 0
		case propRequestProblem:
			c.RequestProblemInfo = prop.num != 0
		case propAuthMethod:
			c.HasAuthMethod, c.AuthMethod = true, prop.text
		case propAuthData:
			c.AuthData = prop.text
		}
	}
	if p.strict && seen&(1<<propAuthData) != 0 && !c.HasAuthMethod {
		return p.protocolError("authentication data without authentication method")
	}
	return nil
}

// willProperties reads 5.0 §3.1.3.2.
func (p *connectParser) willProperties() *ParseError {
	list, err := p.takeList()
	if err != nil {
		return err
	}
	p.c.Will.Properties = list
	var seen uint64
	for in := (cursor{rest: list}); len(in.rest) > 0; {
		prop, err := p.takeProperty(&in, &seen, willProperties)
		if err != nil {
			return err
		}
		if prop.id == propWillDelay {
			p.c.Will.DelayInterval = prop.num
		}
	}
	return nil
}

func (p *connectParser) takeList() (Properties, *ParseError) {
	list, minimal, ok := p.propertyList()
	if !ok {
		return nil, p.malformed("property list runs past the packet")
	}
	if p.strict && !minimal {
		return nil, p.malformed("property length takes more bytes than it needs")
	}
	return list, nil
}

// takeProperty reads one property of a list; with strict it also holds it
// against allowed, and against those seen before.
func (p *connectParser) takeProperty(in *cursor, seen *uint64, allowed uint64) (property, *ParseError) {
	prop, ok := in.nextProperty()
	if !ok {
		return prop, p.malformed("property is unknown or runs past its list")
	}
	bit := uint64(1) << prop.id
	if p.strict {
		if allowed&bit == 0 {
			return prop, p.malformed("property of another packet")
		}
		if *seen&bit != 0 && prop.id != propUser {
			return prop, p.protocolError("property stands twice")
		}
		if err := p.checkProperty(prop); err != nil {
			return prop, err
		}
	}
	*seen |= bit
	return prop, nil
}

func (p *connectParser) checkProperty(prop property) *ParseError {
	switch {
	case prop.kind == kindByte && prop.num > 1:
		return p.protocolError("property must be 0 or 1")
	case (prop.id == propReceiveMaximum || prop.id == propMaximumPacketSize) && prop.num == 0:
		return p.protocolError("property must not be 0")
	case (prop.kind == kindString || prop.kind == kindPair) && !(validText(prop.text) && validText(prop.value)):
		return p.fail(ReasonBadUTF8, RefuseMalformed, "property is not UTF-8 text")
	case prop.id == propResponseTopic && !validTopicName(prop.text):
		return p.protocolError("response topic is empty or has a wildcard")
	}
	return nil
}
