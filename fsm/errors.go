package fsm

import (
	"errors"
	"fmt"
)

// Code says in one word why a command or a query was refused. It crosses the wire between gateways and decides the HTTP
// status in the admin API; the texts must not change.
type Code string

// The codes. The zero value means success.
const (
	CodeOK          Code = ""
	CodeInvalid     Code = "invalid"     // the command breaks a bound or a rule, whatever the tables hold
	CodeNotFound    Code = "not_found"   // what the command is about does not exist
	CodeConflict    Code = "conflict"    // the expected version is not the stored one
	CodeInUse       Code = "in_use"      // something still refers to what should go
	CodeUnsupported Code = "unsupported" // this gateway does not know the command or its format
	CodeNoLeader    Code = "no_leader"   // nothing was proposed: no leader, or no way to reach it
	CodeUnknown     Code = "unknown"     // proposed, outcome not learned: it may or may not be applied
	CodeTimeout     Code = "timeout"     // applied, but these tables have not reached the index in time
)

// Error is a refusal that crosses packages and gateways.
type Error struct {
	Code Code
	// Field names what the refusal is about in the terms of the command, such as "spec.driver"; may be empty.
	Field string
	// Item is the position of the refused element in a batch, -1 when the refusal is about the whole command.
	Item int
	// Message is for people. It never repeats a value from the command.
	Message string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("%s: %s: %s", e.Code, e.Field, e.Message)
}

// Is makes errors.Is compare by code alone, so that the sentinels below match any refusal of their kind.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Code == e.Code && t.Message == ""
}

// Sentinels for errors.Is.
var (
	ErrInvalid     = &Error{Code: CodeInvalid}
	ErrNotFound    = &Error{Code: CodeNotFound}
	ErrConflict    = &Error{Code: CodeConflict}
	ErrInUse       = &Error{Code: CodeInUse}
	ErrUnsupported = &Error{Code: CodeUnsupported}
	ErrNoLeader    = &Error{Code: CodeNoLeader}
	ErrUnknown     = &Error{Code: CodeUnknown}
	ErrTimeout     = &Error{Code: CodeTimeout}
)

// NewError returns a refusal about the whole command.
func NewError(code Code, field, format string, args ...any) *Error {
	return &Error{Code: code, Field: field, Item: -1, Message: fmt.Sprintf(format, args...)}
}

// CodeOf returns the code carried by err, CodeOK for nil, CodeUnknown for an error without one.
func CodeOf(err error) Code {
	if err == nil {
		return CodeOK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeUnknown
}
