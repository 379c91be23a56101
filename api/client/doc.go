// Package client holds the JSON types of Turnout's admin API and a Go client for it. The server in package api and the
// command line use the same types, so what one writes the other reads.
//
// Data flows one way: a method of [Client] builds one request, sends it to the one gateway that the client was made for, and
// returns the decoded answer or an error. An answer outside 2xx is a [*Problem] (RFC 9457); its Code is stable and
// meant for programs, its texts are for people. Nothing is retried: only the caller knows whether a write whose outcome is
// unknown may be sent again. Redirects are not followed, because the bearer token would follow them.
//
// Device keys and node names are arbitrary UTF-8. They travel percent-encoded, byte for byte, and a path is never cleaned.
//
// The package imports nothing of Turnout and refuses to know how the answers come about.
package client
