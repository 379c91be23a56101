// Package api is the admin API of a gateway: JSON over HTTP under /v1, beside /healthz, /readyz, /metrics and /openapi.json.
//
// It owns the listener, the bearer tokens and their roles, the shape of requests and answers (whose types are those of api/client), the mapping
// of refusals to HTTP status and the audit line of every write. It decides nothing about devices: a write becomes one [fsm.Command] for the
// [Proposer], a read is answered from the local tables, an explanation comes from the [Router], a command to a device goes to the [Commander].
//
// One request passes, in this order: observe (request id, metrics, audit line) → recover → guard (how many at once, Host, cross-origin,
// Content-Encoding, query, path bytes) → chi → token and role → body (size, deadline, strict JSON) → huma → handler. Device
// keys and node names in a path are arbitrary UTF-8: chi routes on the escaped path, always, and huma unescapes one segment once.
//
// What it refuses: unknown fields and query parameters, duplicate and null members, data behind the JSON value, text that is not UTF-8, and bodies
// over their bound. A refusal names the place and never repeats a value, and nothing that was sent in a body stands in a log.
package api
