package mqtt

import (
	"bytes"
	"fmt"
	"io"
)

// minReadBuffer is what ReadConnect starts with when the caller lends nothing.
// Nearly every CONNECT fits.
const minReadBuffer = 512

// maxEmptyReads bounds how often a reader may return neither bytes nor an error.
const maxEmptyReads = 100

// The two protocol names, each with its length in front (3.1.1 §3.1.2.1).
const (
	nameMQTT   = "\x00\x04MQTT"
	nameMQIsdp = "\x00\x06MQIsdp"
)

// ConnectLength looks at the first bytes of a connection. total is the length
// in bytes of the whole CONNECT packet, fixed header included, or 0 when buf is
// still too short to tell. limit bounds total; 0 stands for the bound of the
// protocol. The error is a *ParseError: not_mqtt, bad_length or too_large.
func ConnectLength(buf []byte, limit int) (total int, err error) {
	if len(buf) == 0 {
		return 0, nil
	}
	// MQTT 3.1 gives the lower half of the byte no meaning, so old firmware may
	// send anything there; only what opens a TLS record is kept out.
	if TypeOf(buf[0]) != CONNECT || buf[0] == tlsHandshake {
		return 0, newParseError(ReasonNotMQTT, 0, 0, foreignProtocol(buf[0]))
	}
	value, n := uvarint(buf[1:])
	switch {
	case n < 0:
		return 0, newParseError(ReasonBadLength, 0, 0, "remaining length has a fifth byte")
	case n == 0:
		return 0, nil
	}
	total = 1 + n + value
	if limit > 0 && total > limit {
		return 0, newParseError(ReasonTooLarge, RefuseTooLarge, peekVersion(buf[1+n:]), "CONNECT is longer than the limit")
	}
	return total, nil
}

// tlsHandshake is the first byte of a TLS ClientHello record.
const tlsHandshake = 0x16

// foreignProtocol guesses for the operator what else was meant for this port.
func foreignProtocol(first byte) string {
	switch first {
	case tlsHandshake:
		return "TLS on a listener without TLS"
	case 'G', 'H', 'O', 'D':
		return "looks like HTTP"
	case 'P', '\r':
		return "looks like HTTP or a PROXY header"
	}
	return "first byte is not a CONNECT header"
}

// peekVersion finds 5.0 in the first bytes of a body that will not be read, so
// that such a client can still be told what was wrong.
func peekVersion(body []byte) Version {
	if len(body) > len(nameMQTT) && bytes.HasPrefix(body, []byte(nameMQTT)) && Version(body[len(nameMQTT)]) == V5 {
		return V5
	}
	return 0
}

// PacketLength tells the length of the packet, of whatever type, that buf
// begins with: header and body together, in bytes. ok is false while buf is too
// short to tell. It is for the first packet of a broker, CONNACK or AUTH. limit
// bounds total; 0 stands for the bound of the protocol. The error is a
// *ParseError: malformed (type 0), bad_length or too_large.
func PacketLength(buf []byte, limit int) (total int, ok bool, err error) {
	if len(buf) == 0 {
		return 0, false, nil
	}
	if TypeOf(buf[0]) == 0 {
		return 0, false, newParseError(ReasonMalformed, 0, 0, "packet type 0")
	}
	value, n := uvarint(buf[1:])
	switch {
	case n < 0:
		return 0, false, newParseError(ReasonBadLength, 0, 0, "remaining length has a fifth byte")
	case n == 0:
		return 0, false, nil
	}
	total = 1 + n + value
	if limit > 0 && total > limit {
		return 0, false, newParseError(ReasonTooLarge, 0, 0, "packet is longer than the limit")
	}
	return total, true, nil
}

// ReadConnect reads from r until a CONNECT is complete and returns it together
// with the bytes that came behind it. Both lie in buf, or in a larger buffer if
// buf was too small; that one doubles only after it has been filled, so a long
// announced length costs nothing until the bytes are there. limit is that of
// [ConnectLength]. At most cap(buf) bytes (512 if buf has none) can be surplus.
//
// The caller sets the read deadline beforehand. The error is a *ParseError;
// io.EOF when the peer left without a byte, as health probes do;
// io.ErrUnexpectedEOF, wrapped, when it left in the middle; or, wrapped, what r
// returned.
func ReadConnect(r io.Reader, buf []byte, limit int) (packet, surplus []byte, err error) {
	if cap(buf) == 0 {
		buf = make([]byte, minReadBuffer)
	}
	buf = buf[:0]
	total, empty := 0, 0
	for {
		n, readErr := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if total == 0 {
			if total, err = ConnectLength(buf, limit); err != nil {
				return nil, nil, err
			}
		}
		if total > 0 && len(buf) >= total {
			// An error that came along shows again at the next read; a client
			// that has shut its write side still gets its answer.
			return buf[:total:total], buf[total:], nil
		}
		switch {
		case readErr == io.EOF && len(buf) == 0:
			return nil, nil, io.EOF
		case readErr == io.EOF:
			return nil, nil, fmt.Errorf("read CONNECT: %w", io.ErrUnexpectedEOF)
		case readErr != nil:
			return nil, nil, fmt.Errorf("read CONNECT: %w", readErr)
		case n > 0:
			empty = 0
		default:
			if empty++; empty == maxEmptyReads {
				return nil, nil, fmt.Errorf("read CONNECT: %w", io.ErrNoProgress)
			}
		}
		if len(buf) == cap(buf) {
			buf = grow(buf, total)
		}
	}
}

// grow doubles a full buffer, but never past the packet it is for. A buffer too
// small for a fixed header has no total yet.
func grow(buf []byte, total int) []byte {
	size := 2 * cap(buf)
	if total == 0 {
		size = max(size, 8)
	} else {
		size = min(size, total)
	}
	larger := make([]byte, len(buf), size)
	copy(larger, buf)
	return larger
}
