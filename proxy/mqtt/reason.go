package mqtt

// Reason says in one word why bytes from outside were refused. The set is
// bounded and fit to be a metric label.
type Reason string

// The reasons of a [ParseError].
const (
	ReasonNotMQTT          Reason = "not_mqtt"           // first byte is no CONNECT header
	ReasonBadLength        Reason = "bad_length"         // length encoding, or length of the packet as given
	ReasonTooLarge         Reason = "too_large"          // announced length over the limit
	ReasonBadProtocolName  Reason = "bad_protocol_name"  // neither MQTT nor MQIsdp
	ReasonBadLevel         Reason = "bad_level"          // level unknown, or not of this name
	ReasonMalformed        Reason = "malformed"          // a field lies about its length, or a reserved bit is set
	ReasonProtocolError    Reason = "protocol_error"     // well-formed and forbidden
	ReasonBadUTF8          Reason = "bad_utf8"           // text that is no UTF-8 or holds U+0000
	ReasonClientIDRejected Reason = "client_id_rejected" // well-formed client identifier that is not allowed
)

// Reasons lists every reason, so that a counter can be created for each at start.
func Reasons() []Reason {
	return []Reason{
		ReasonNotMQTT, ReasonBadLength, ReasonTooLarge, ReasonBadProtocolName, ReasonBadLevel,
		ReasonMalformed, ReasonProtocolError, ReasonBadUTF8, ReasonClientIDRejected,
	}
}

// ParseError is a packet that was refused. It holds no byte of the packet.
type ParseError struct {
	Reason  Reason
	Refusal Refusal // what to answer; zero where nothing can be answered
	// Version is the client's, 0 when it was not readable.
	Version Version
	// Code is the 5.0 reason code to answer with, 0 = close silently.
	Code byte
	// ReplyFor3x is the 3.x return code to answer with, 0 = close silently.
	ReplyFor3x byte
	// MaximumPacketSize is the client's limit for the answer, 0 = none known.
	MaximumPacketSize uint32
	// Detail says for people what was wrong; always a fixed text.
	Detail string
}

// Error gives reason and detail.
func (e *ParseError) Error() string { return "mqtt " + string(e.Reason) + ": " + e.Detail }

// AppendReply appends the CONNACK that answers the refused CONNECT in the
// client's own version, or nothing where the connection is to be closed
// without a word.
func (e *ParseError) AppendReply(dst []byte) []byte {
	return AppendConnack(dst, e.Version, e.Refusal, "", "", e.MaximumPacketSize)
}

func newParseError(reason Reason, refusal Refusal, v Version, detail string) *ParseError {
	e := &ParseError{Reason: reason, Refusal: refusal, Version: v, Detail: detail}
	e.Code, e.ReplyFor3x = refusal.codes()
	return e
}
