package proxy

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"

	"turnout/fsm"
	"turnout/proxy/mqtt"
)

// ErrKeyTooLong is a device key over fsm.MaxKeyBytes; such a device is refused as one with a client identifier that is
// not valid.
var ErrKeyTooLong = fmt.Errorf("device key is longer than %d bytes", fsm.MaxKeyBytes)

// passwordDigits is how many hexadecimal digits of the HMAC stand for a password.
const passwordDigits = 32

// part is a field of CONNECT that a template may name.
type part uint8

const (
	partClientID part = iota
	partUsername
	partPassword
)

// slot is a placeholder with the literal in front of it.
type slot struct {
	literal string
	part    part
}

// Identity makes device keys of CONNECTs, as an identity template says.
//
// A template is text with the placeholders {client_id}, {username} and {password_hmac}, each at most once, and literals
// around and between them. With one placeholder its value is taken byte for byte. With more, '%' and every byte that is
// part of a literal are written as %XX (RFC 3986 §2.1, upper case) inside the values, a missing value is empty, and one that is
// present but empty is a lone "%": so two CONNECTs that differ in a value that the template names never have the same key.
type Identity struct {
	template string
	slots    []slot
	tail     string
	escape   [256]bool // bytes to be escaped inside values; only with two or more slots
	clientID bool      // the template names the client identifier
	macs     *sync.Pool
}

// keyedMAC is an HMAC ready to be used again, with the secret it was made with.
type keyedMAC struct {
	secret string
	hash   hash.Hash
	sum    [sha256.Size]byte
}

// ParseIdentity reads a template. Errors say which rule it breaks.
func ParseIdentity(template string) (*Identity, error) {
	id := &Identity{template: template, macs: &sync.Pool{}}
	rest, literals := template, ""
	for {
		open := strings.IndexByte(rest, '{')
		if open < 0 {
			id.tail = rest
			literals += rest
			break
		}
		end := strings.IndexByte(rest[open:], '}')
		if end < 0 {
			return nil, errors.New("identity: a '{' without its '}'")
		}
		s := slot{literal: rest[:open]}
		switch rest[open : open+end+1] {
		case "{client_id}":
			s.part, id.clientID = partClientID, true
		case "{username}":
			s.part = partUsername
		case "{password_hmac}":
			s.part = partPassword
		default:
			return nil, errors.New("identity: placeholders are {client_id}, {username} and {password_hmac}")
		}
		for _, other := range id.slots {
			if other.part == s.part {
				return nil, errors.New("identity: a placeholder may stand only once")
			}
		}
		if len(id.slots) > 0 {
			if err := checkSeparator(s.literal); err != nil {
				return nil, err
			}
		}
		id.slots = append(id.slots, s)
		literals += s.literal
		rest = rest[open+end+1:]
	}
	if len(id.slots) == 0 {
		return nil, errors.New("identity: needs at least one placeholder")
	}
	if len(literals) >= fsm.MaxKeyBytes {
		return nil, fmt.Errorf("identity: literals must be less than %d bytes", fsm.MaxKeyBytes)
	}
	for i := range len(literals) {
		// Only ASCII: escaping single bytes of longer characters would leave keys that are not UTF-8.
		if b := literals[i]; b < 0x20 || b > 0x7E || b == '%' || b == '}' {
			return nil, errors.New("identity: literals are printable ASCII without '{', '}' and '%'")
		}
		id.escape[literals[i]] = len(id.slots) > 1
	}
	id.escape['%'] = len(id.slots) > 1
	return id, nil
}

// checkSeparator sees to it that the end of a value can be told: the byte behind it never occurs inside an escaped value.
func checkSeparator(s string) error {
	switch {
	case s == "":
		return errors.New("identity: two placeholders need a literal between them")
	case s[0] >= '0' && s[0] <= '9', s[0] >= 'A' && s[0] <= 'F':
		return errors.New("identity: a literal between two placeholders must not begin with 0-9 or A-F")
	}
	return nil
}

// String returns the template.
func (id *Identity) String() string { return id.template }

// Key appends the device key of c to dst. It appends nothing for an empty key: when the template names the client
// identifier and that is empty, or when no value is present. secret keys {password_hmac}. A key over fsm.MaxKeyBytes is
// ErrKeyTooLong. Nothing is allocated when dst has room for fsm.MaxKeyBytes.
func (id *Identity) Key(dst []byte, c *mqtt.Connect, secret []byte) ([]byte, error) {
	if id.clientID && len(c.ClientID) == 0 {
		return dst, nil
	}
	start, present := len(dst), false
	for _, s := range id.slots {
		dst = append(dst, s.literal...)
		value, ok := id.value(c, s.part)
		if !ok {
			continue
		}
		present = true
		if s.part == partPassword {
			dst = id.appendPassword(dst, value, secret)
			continue
		}
		if len(value) > fsm.MaxKeyBytes {
			return dst[:start], ErrKeyTooLong
		}
		dst = id.appendValue(dst, value)
	}
	dst = append(dst, id.tail...)
	switch {
	case !present:
		return dst[:start], nil
	case len(dst)-start > fsm.MaxKeyBytes:
		return dst[:start], ErrKeyTooLong
	}
	return dst, nil
}

func (id *Identity) value(c *mqtt.Connect, p part) (value []byte, present bool) {
	switch p {
	case partClientID:
		return c.ClientID, true
	case partUsername:
		return c.Username, c.HasUsername
	}
	return c.Password, c.HasPassword
}

const upperHex = "0123456789ABCDEF"

func (id *Identity) appendValue(dst, value []byte) []byte {
	if len(id.slots) == 1 {
		return append(dst, value...)
	}
	if len(value) == 0 {
		return append(dst, '%')
	}
	for _, b := range value {
		if id.escape[b] {
			dst = append(dst, '%', upperHex[b>>4], upperHex[b&15])
		} else {
			dst = append(dst, b)
		}
	}
	return dst
}

// appendPassword appends what stands for a password: the first digits of its HMAC-SHA256 (RFC 2104) under the secret.
func (id *Identity) appendPassword(dst, password, secret []byte) []byte {
	m, _ := id.macs.Get().(*keyedMAC)
	if m == nil || m.secret != string(secret) {
		m = &keyedMAC{secret: string(secret), hash: hmac.New(sha256.New, secret)}
	}
	m.hash.Reset()
	m.hash.Write(password)
	sum := m.hash.Sum(m.sum[:0])
	var digits [passwordDigits]byte
	hex.Encode(digits[:], sum[:passwordDigits/2])
	id.macs.Put(m)
	return id.appendValue(dst, digits[:])
}

// Parts are the values that a device key was made of.
type Parts struct {
	ClientID, Username       string
	HasClientID, HasUsername bool
}

// Parts takes a key apart, for topics of commands. It is the inverse of Key as far as a key tells: passwords stay secret. ok is false for
// a key that the template cannot have made.
func (id *Identity) Parts(key fsm.DeviceKey) (p Parts, ok bool) {
	rest, ok := strings.CutPrefix(string(key), id.slots[0].literal)
	if !ok {
		return Parts{}, false
	}
	if rest, ok = strings.CutSuffix(rest, id.tail); !ok {
		return Parts{}, false
	}
	for i, s := range id.slots {
		value := rest
		if i+1 < len(id.slots) {
			if value, rest, ok = strings.Cut(rest, id.slots[i+1].literal); !ok {
				return Parts{}, false
			}
		}
		raw, present, ok := id.unescape(value)
		if !ok || s.part == partClientID && raw == "" {
			return Parts{}, false
		}
		switch s.part {
		case partClientID:
			p.ClientID, p.HasClientID = raw, present
		case partUsername:
			p.Username, p.HasUsername = raw, present
		}
	}
	return p, true
}

func (id *Identity) unescape(value string) (raw string, present, ok bool) {
	switch {
	case len(id.slots) == 1:
		return value, true, true
	case value == "":
		return "", false, true
	case value == "%":
		return "", true, true
	}
	var b bytes.Buffer
	for i := 0; i < len(value); i++ {
		c := value[i]
		if c == '%' {
			if i+2 >= len(value) {
				return "", false, false
			}
			hi, lo := strings.IndexByte(upperHex, value[i+1]), strings.IndexByte(upperHex, value[i+2])
			if hi < 0 || lo < 0 || !id.escape[hi<<4|lo] {
				return "", false, false
			}
			c, i = byte(hi<<4|lo), i+2
		} else if id.escape[c] {
			return "", false, false
		}
		b.WriteByte(c)
	}
	return b.String(), true, true
}
