package mqtt

// Refusal is why the gateway turns a client away, independent of the version
// that the client speaks. The zero value answers nothing.
type Refusal uint8

// The refusals of the gateway. 5.0 reason code and 3.x return code stand behind
// each; where the second is missing a 3.x client sees a closed connection,
// because 3.1.1 has no code that fits ([MQTT-3.2.2-6]).
const (
	RefuseServerUnavailable  Refusal = iota + 1 // 0x88, 0x03: no cluster, no healthy node, node did not answer
	RefuseBusy                                  // 0x89, 0x03: gateway overloaded, too many connections
	RefuseQuota                                 // 0x97, 0x03: quota of the tenant or cluster is used up
	RefuseConnectRate                           // 0x9F, 0x03: too many connections in too short a time
	RefuseUseAnotherServer                      // 0x9C, 0x03: belongs elsewhere for now
	RefuseServerMoved                           // 0x9D, 0x03: belongs elsewhere for good
	RefuseDraining                              // 0x88, 0x03: 0x8B is not legal in CONNACK
	RefuseNotAuthorized                         // 0x87, 0x05: unknown device, wrong certificate
	RefuseBadCredentials                        // 0x86, 0x04: user name or password missing or wrong
	RefuseBanned                                // 0x8A, 0x05: blocked by an operator
	RefuseClientID                              // 0x85, 0x02: client identifier not allowed
	RefuseUnsupportedVersion                    // 0x84, 0x01: sent in 3.x form when the version is unknown
	RefuseMalformed                             // 0x81
	RefuseProtocolError                         // 0x82
	RefuseTooLarge                              // 0x95
	RefuseBadAuthMethod                         // 0x8C: enhanced authentication not supported (5.0 [MQTT-4.12.0-1])
	RefuseWillTopic                             // 0x90: will topic not valid

	refusalEnd
)

// Refusals lists every refusal, so that a counter can be created for each at start.
func Refusals() []Refusal {
	all := make([]Refusal, 0, refusalEnd-1)
	for r := Refusal(1); r < refusalEnd; r++ {
		all = append(all, r)
	}
	return all
}

// String gives a metric label such as "server_unavailable".
func (r Refusal) String() string {
	switch r {
	case RefuseServerUnavailable:
		return "server_unavailable"
	case RefuseBusy:
		return "busy"
	case RefuseQuota:
		return "quota"
	case RefuseConnectRate:
		return "connect_rate"
	case RefuseUseAnotherServer:
		return "use_another_server"
	case RefuseServerMoved:
		return "server_moved"
	case RefuseDraining:
		return "draining"
	case RefuseNotAuthorized:
		return "not_authorized"
	case RefuseBadCredentials:
		return "bad_credentials"
	case RefuseBanned:
		return "banned"
	case RefuseClientID:
		return "client_id_rejected"
	case RefuseUnsupportedVersion:
		return "unsupported_version"
	case RefuseMalformed:
		return "malformed"
	case RefuseProtocolError:
		return "protocol_error"
	case RefuseTooLarge:
		return "too_large"
	case RefuseBadAuthMethod:
		return "bad_auth_method"
	case RefuseWillTopic:
		return "will_topic"
	}
	return "none"
}

// Code is what a CONNACK to a client of version v carries; 0 means that nothing
// is sent and the connection is closed. For an unknown version only
// [RefuseUnsupportedVersion] has a code.
func (r Refusal) Code(v Version) byte {
	code, code3x := r.codes()
	switch {
	case v == V5:
		return code
	case v == V31, v == V311, r == RefuseUnsupportedVersion:
		return code3x
	}
	return 0
}

// Transient tells whether the same client may be served when it comes again;
// MQTT has no field that would tell it when.
func (r Refusal) Transient() bool {
	switch r {
	case RefuseServerUnavailable, RefuseBusy, RefuseQuota, RefuseConnectRate, RefuseUseAnotherServer, RefuseDraining:
		return true
	}
	return false
}

func (r Refusal) codes() (code, code3x byte) {
	switch r {
	case RefuseServerUnavailable, RefuseDraining:
		return CodeServerUnavailable, ReturnServerUnavailable
	case RefuseBusy:
		return CodeServerBusy, ReturnServerUnavailable
	case RefuseQuota:
		return CodeQuotaExceeded, ReturnServerUnavailable
	case RefuseConnectRate:
		return CodeConnectionRateExceeded, ReturnServerUnavailable
	case RefuseUseAnotherServer:
		return CodeUseAnotherServer, ReturnServerUnavailable
	case RefuseServerMoved:
		return CodeServerMoved, ReturnServerUnavailable
	case RefuseNotAuthorized:
		return CodeNotAuthorized, ReturnNotAuthorized
	case RefuseBadCredentials:
		return CodeBadCredentials, ReturnBadCredentials
	case RefuseBanned:
		return CodeBanned, ReturnNotAuthorized
	case RefuseClientID:
		return CodeClientIDNotValid, ReturnIdentifierRejected
	case RefuseUnsupportedVersion:
		return CodeUnsupportedVersion, ReturnUnacceptableVersion
	case RefuseMalformed:
		return CodeMalformedPacket, 0
	case RefuseProtocolError:
		return CodeProtocolError, 0
	case RefuseTooLarge:
		return CodePacketTooLarge, 0
	case RefuseBadAuthMethod:
		return CodeBadAuthMethod, 0
	case RefuseWillTopic:
		return CodeTopicNameInvalid, 0
	}
	return 0, 0
}

// Reason codes of MQTT 5.0 (§2.4) that a gateway sends or looks for.
const (
	CodeSuccess                byte = 0x00
	CodeUnspecifiedError       byte = 0x80
	CodeMalformedPacket        byte = 0x81
	CodeProtocolError          byte = 0x82
	CodeUnsupportedVersion     byte = 0x84
	CodeClientIDNotValid       byte = 0x85
	CodeBadCredentials         byte = 0x86
	CodeNotAuthorized          byte = 0x87
	CodeServerUnavailable      byte = 0x88 // CONNACK only
	CodeServerBusy             byte = 0x89
	CodeBanned                 byte = 0x8A // CONNACK only
	CodeServerShuttingDown     byte = 0x8B // DISCONNECT only
	CodeBadAuthMethod          byte = 0x8C
	CodeKeepAliveTimeout       byte = 0x8D // DISCONNECT only
	CodeSessionTakenOver       byte = 0x8E // DISCONNECT only
	CodeTopicNameInvalid       byte = 0x90
	CodePacketTooLarge         byte = 0x95
	CodeQuotaExceeded          byte = 0x97
	CodeAdministrativeAction   byte = 0x98 // DISCONNECT only
	CodeUseAnotherServer       byte = 0x9C
	CodeServerMoved            byte = 0x9D
	CodeConnectionRateExceeded byte = 0x9F
)

// Return codes of a 3.x CONNACK (3.1.1 §3.2.2.3).
const (
	ReturnAccepted            byte = 0x00
	ReturnUnacceptableVersion byte = 0x01
	ReturnIdentifierRejected  byte = 0x02
	ReturnServerUnavailable   byte = 0x03
	ReturnBadCredentials      byte = 0x04
	ReturnNotAuthorized       byte = 0x05
)
