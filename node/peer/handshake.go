package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"

	"turnout/fsm"
)

// The handshake. The side that dialed sends 11 bytes (magic, version, purpose, length of the hello in two bytes, big
// endian) and the hello in CBOR; the other side answers with 6 bytes (magic, version, reason) and closes unless the
// reason is 0. Nothing else is read or written by either side before.
const (
	helloHeaderBytes  = 11
	maxHelloBytes     = 1013 // with its header not over 1 KiB
	answerBytes       = 6
	handshakeVersion  = 1
	maxIdentifierSize = 64
)

var (
	helloMagic  = [7]byte{'T', 'R', 'N', 'P', 'E', 'E', 'R'}
	answerMagic = [4]byte{'T', 'R', 'N', 'A'}
)

// purpose says what a connection is for.
type purpose uint8

const (
	purposeRaft purpose = 1
	purposeRPC  purpose = 2
)

func (p purpose) String() string {
	switch p {
	case purposeRaft:
		return "raft"
	case purposeRPC:
		return "rpc"
	}
	return "none"
}

// refusal is the reason in the answer, and the label of the metric.
type refusal uint8

const (
	accepted           refusal = 0
	refusedMalformed   refusal = 1 // not a hello
	refusedVersion     refusal = 2 // a hello of another version
	refusedPurpose     refusal = 3
	refusedCluster     refusal = 4 // of another cluster
	refusedTarget      refusal = 5 // meant for another gateway
	refusedNotAdmitted refusal = 6 // Raft, but this gateway is not a member yet
	refusedBusy        refusal = 7 // too many connections
	refusedTimeout     refusal = 8 // no hello in time; never sent
	refusedTLS         refusal = 9 // the TLS handshake; never sent
)

var refusalNames = [...]string{"accepted", "malformed", "version", "purpose", "cluster", "target", "not_admitted", "busy", "timeout", "tls"}

func (r refusal) String() string {
	if int(r) < len(refusalNames) {
		return refusalNames[r]
	}
	return "unknown"
}

// hello names both ends of a connection.
type hello struct {
	Cluster string        `cbor:"1,keyasint,omitempty"` // empty while the sender belongs to none
	Source  fsm.GatewayID `cbor:"2,keyasint"`
	Target  fsm.GatewayID `cbor:"3,keyasint"`

	purpose purpose
}

// refusedError is an answer with a reason.
type refusedError struct{ reason refusal }

func (e *refusedError) Error() string { return "handshake refused: " + e.reason.String() }

var wireEncoding, wireDecoding = wireCodecs()

// wireCodecs fixes the CBOR (RFC 8949) between gateways: bounded on the way in, unknown keys ignored, so that a later
// release may add some.
func wireCodecs() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // constant options: cannot happen
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		MaxArrayElements: 1024,
		MaxMapPairs:      1024,
		MaxNestedLevels:  8,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
	}.DecMode()
	if err != nil {
		panic(err) // constant options: cannot happen
	}
	return enc, dec
}

func writeHello(w io.Writer, h hello) error {
	body, err := wireEncoding.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode hello: %w", err)
	}
	if len(body) > maxHelloBytes {
		return fmt.Errorf("encode hello: %d bytes exceed %d", len(body), maxHelloBytes)
	}
	frame := make([]byte, helloHeaderBytes, helloHeaderBytes+len(body))
	copy(frame, helloMagic[:])
	frame[7] = handshakeVersion
	frame[8] = byte(h.purpose)
	binary.BigEndian.PutUint16(frame[9:], uint16(len(body)))
	if _, err := w.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("write hello: %w", err)
	}
	return nil
}

// readHello reads exactly the hello. Breaches are of type *refusedError, everything else is the reader's error.
func readHello(r io.Reader) (hello, error) {
	var head [helloHeaderBytes]byte
	// The magic first and alone: what is not ours is not waited for.
	if _, err := io.ReadFull(r, head[:len(helloMagic)]); err != nil {
		return hello{}, err
	}
	if [7]byte(head[:7]) != helloMagic {
		return hello{}, &refusedError{refusedMalformed}
	}
	if _, err := io.ReadFull(r, head[7:]); err != nil {
		return hello{}, err
	}
	if head[7] != handshakeVersion {
		return hello{}, &refusedError{refusedVersion}
	}
	h := hello{purpose: purpose(head[8])}
	if h.purpose != purposeRaft && h.purpose != purposeRPC {
		return hello{}, &refusedError{refusedPurpose}
	}
	n := binary.BigEndian.Uint16(head[9:])
	if n > maxHelloBytes {
		return hello{}, &refusedError{refusedMalformed}
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return hello{}, err
	}
	if err := wireDecoding.Unmarshal(body, &h); err != nil {
		return hello{}, &refusedError{refusedMalformed}
	}
	if h.Source == "" || h.Target == "" || len(h.Source) > maxIdentifierSize || len(h.Target) > maxIdentifierSize || len(h.Cluster) > maxIdentifierSize {
		return hello{}, &refusedError{refusedMalformed}
	}
	return h, nil
}

func writeAnswer(w io.Writer, reason refusal) error {
	frame := append(answerMagic[:], handshakeVersion, byte(reason))
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return nil
}

// readAnswer returns nil when the other side accepted, a *refusedError when it did not.
func readAnswer(r io.Reader) error {
	var b [answerBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if [4]byte(b[:4]) != answerMagic {
		return errors.New("read answer: the other side is not a gateway's peer port")
	}
	if b[5] != byte(accepted) {
		return &refusedError{refusal(b[5])}
	}
	return nil
}
