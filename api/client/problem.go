package client

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Codes of problems that the API itself makes. Those of the replicated tables come through unchanged: invalid, not_found, conflict,
// in_use, unsupported, no_leader, unknown, timeout.
const (
	CodeBadRequest       = "bad_request"        // 400: not readable as a request, such as broken JSON
	CodeInvalid          = "invalid"            // 422: readable, but breaks a rule or a bound
	CodeUnauthorized     = "unauthorized"       // 401: no token, or not a valid one
	CodeForbidden        = "forbidden"          // 403: the token's role does not reach
	CodeNotFound         = "not_found"          // 404
	CodeMethodNotAllowed = "method_not_allowed" // 405
	CodeRequestTimeout   = "request_timeout"    // 408: the body did not arrive in time
	CodeConflict         = "conflict"           // 412 with If-Match or If-None-Match, otherwise 409
	CodeInUse            = "in_use"             // 409
	CodeTooLarge         = "too_large"          // 413
	CodeMediaType        = "media_type"         // 415: Content-Type or Content-Encoding not taken
	CodeMisdirected      = "misdirected"        // 421: Host does not belong to a loopback address
	CodeInternal         = "internal"           // 500
	CodeUnsupported      = "unsupported"        // 501
	CodeNoLeader         = "no_leader"          // 503: nothing was written; try again after Retry-After
	CodeOverloaded       = "overloaded"         // 503: too many requests at once
	CodeUnknown          = "unknown"            // 504: the write may or may not have been applied
	CodeTimeout          = "timeout"            // 504: written, but the asked gateway has not applied it yet
)

// Problem is an error answer (RFC 9457, application/problem+json). It never repeats a value that was sent.
type Problem struct {
	Type   string        `json:"type" doc:"Identifies the kind of problem" example:"urn:turnout:problem:not_found"`
	Title  string        `json:"title" doc:"Text of the HTTP status"`
	Status int           `json:"status" doc:"HTTP status"`
	Detail string        `json:"detail" doc:"What went wrong, for people"`
	Code   string        `json:"code" doc:"Stable code, for programs"`
	Errors []FieldError  `json:"errors,omitempty" doc:"What is wrong with which part of the request"`
	Import *ImportResult `json:"import,omitempty" doc:"How far an import came before it stopped"`
	// RequestID also stands in the gateway's audit line.
	RequestID string `json:"request_id,omitempty"`
	// RetryAfter is taken from the header of the same name, 0 without it.
	RetryAfter time.Duration `json:"-"`
}

// FieldError names one wrong part of a request.
type FieldError struct {
	Location string `json:"location" doc:"Such as body.channel.kind, path.key, query.limit or header.If-Match"`
	Message  string `json:"message"`
}

// Error implements error in one line: status, what happened, and each wrong field.
func (p *Problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s: %s", p.Status, p.Code, p.Detail)
	for _, e := range p.Errors {
		fmt.Fprintf(&b, "; %s: %s", e.Location, e.Message)
	}
	if i := p.Import; i != nil {
		if i.Line > 0 {
			fmt.Fprintf(&b, "; stopped at line %d", i.Line)
		}
		fmt.Fprintf(&b, "; last committed line %d", i.LastCommittedLine)
	}
	return b.String()
}

// HashToken returns the form in which a bearer token stands in a tokens file: SHA-256 in lower-case hexadecimal. Tokens must be long
// and random (32 bytes from the system's generator): a fast hash does not protect a word that can be guessed.
func HashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}
