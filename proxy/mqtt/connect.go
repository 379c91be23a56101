package mqtt

import (
	"fmt"
	"io"
	"log/slog"
	"strconv"
)

// Bits of the connect flags (3.1.1 §3.1.2.3).
const (
	flagReserved   = 0x01
	flagCleanStart = 0x02
	flagWill       = 0x04
	flagWillQoS    = 0x18
	flagWillRetain = 0x20
	flagPassword   = 0x40
	flagUsername   = 0x80
)

// bridgeBit in the level marks a bridge; an extension of Mosquitto.
const bridgeBit = 0x80

// shownIDLen is how many bytes of a client identifier are printed.
const shownIDLen = 64

// Connect is a parsed CONNECT. Its slices point into the packet that was given
// to [ParseConnect]; copy what has to outlive it. Printed or logged it shows
// neither user name nor password nor will.
type Connect struct {
	Version    Version
	Bridge     bool   // bit 7 of the level was set
	CleanStart bool   // Clean Session in 3.x
	KeepAlive  uint16 // seconds, 0 = off
	ClientID   []byte // valid UTF-8 without U+0000, 0 to 65535 bytes

	// Has… tells an empty field from a missing one.
	HasUsername bool
	HasPassword bool
	Username    []byte // valid UTF-8 without U+0000
	Password    []byte // any bytes

	HasWill bool
	Will    Will

	// The rest is 5.0; for 3.x and absent properties the defaults of §3.1.2.11 stand here.
	SessionExpiry       uint32 // seconds, default 0; 0xFFFFFFFF = never
	ReceiveMaximum      uint16 // packets, default 65535
	MaximumPacketSize   uint32 // bytes, 0 = no limit
	TopicAliasMaximum   uint16 // default 0
	RequestResponseInfo bool   // default false
	RequestProblemInfo  bool   // default true
	HasAuthMethod       bool   // the client wants enhanced authentication: AUTH may come before CONNACK
	AuthMethod          []byte
	AuthData            []byte     // secret
	Properties          Properties // the whole list
}

// Will is the message that the broker publishes when the client vanishes.
type Will struct {
	Topic         []byte
	Payload       []byte
	QoS           byte // 0 to 2; 3 only if not strict
	Retain        bool
	DelayInterval uint32     // seconds; 5.0 §3.1.3.2.2
	Properties    Properties // 5.0: the whole list
}

// String describes the CONNECT without anything secret. The client
// identifier is quoted and cut at 64 bytes.
func (c Connect) String() string {
	return "CONNECT " + c.Version.String() + " client_id=" + c.quotedID() +
		" keep_alive=" + strconv.Itoa(int(c.KeepAlive)) + " clean_start=" + strconv.FormatBool(c.CleanStart)
}

func (c Connect) quotedID() string {
	id, cut := c.ClientID, ""
	if len(id) > shownIDLen {
		id, cut = id[:shownIDLen], "..."
	}
	return strconv.QuoteToASCII(string(id)) + cut
}

// Format writes [Connect.String] for every verb, so that no verb shows the
// fields.
func (c Connect) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// Format shows neither topic nor payload, whatever the verb.
func (w Will) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "will qos="+strconv.Itoa(int(w.QoS))+" retain="+strconv.FormatBool(w.Retain))
}

// LogValue does the same as String for log/slog.
func (c Connect) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("version", c.Version.String()),
		slog.String("client_id", c.quotedID()),
		slog.Int("keep_alive", int(c.KeepAlive)),
		slog.Bool("clean_start", c.CleanStart),
	)
}
