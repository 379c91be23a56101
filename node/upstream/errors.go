package upstream

import "errors"

// Class says in one word why a broker cluster's management side could not be used. The set is closed: it labels metrics and
// goes to API users.
type Class string

// The classes, in the order in which they hide each other when several URLs of one cluster fail differently.
const (
	ClassUnauthorized   Class = "unauthorized"    // 401 or 403: the credential is wrong or too weak
	ClassNoCredential   Class = "no_credential"   // the credential reference leads to nothing usable on this gateway
	ClassRefusedAddress Class = "refused_address" // the guard does not let this gateway connect there
	ClassBadAnswer      Class = "bad_answer"      // something answered, but not what the driver expects
	ClassServerError    Class = "server_error"    // 5xx
	ClassUnreachable    Class = "unreachable"     // no connection, or no whole answer in time
)

func classes() []Class {
	return []Class{ClassUnauthorized, ClassNoCredential, ClassRefusedAddress, ClassBadAnswer, ClassServerError, ClassUnreachable}
}

// Error is a failure towards a broker cluster. Its text is made of words of this package alone.
type Error struct {
	Class  Class
	Detail string
	cause  error // a sentinel of this package, for errors.Is
}

// Error implements error.
func (e *Error) Error() string { return string(e.Class) + ": " + e.Detail }

// Unwrap returns the sentinel behind the error, if there is one.
func (e *Error) Unwrap() error { return e.cause }

// ClassOf returns the class of an error, ClassUnreachable when it carries none, empty for nil.
func ClassOf(err error) Class {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return ClassUnreachable
}

// worse returns the error that tells an operator more.
func worse(a, b error) error {
	if a == nil {
		return b
	}
	ca, cb := ClassOf(a), ClassOf(b)
	for _, c := range classes() {
		switch c {
		case ca:
			return a
		case cb:
			return b
		}
	}
	return a
}
