package api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"

	"turnout/api/client"
)

// guard refuses what no operation takes and makes the path ready for routing.
func (a *API) guard(next http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := a.checkRequest(r, crossOrigin); p != nil {
			writeProblem(w, r, p)
			return
		}
		if !isProbe(r.URL.Path) {
			select {
			case a.slots <- struct{}{}:
				defer func() { <-a.slots }()
			default:
				writeProblem(w, r, newProblem(http.StatusServiceUnavailable, client.CodeOverloaded, "too many requests at once").with("Retry-After", "1"))
				return
			}
		}
		// chi routes on the escaped path only where there is one, and humachi unescapes only then. Set it always, so that every
		// segment is unescaped exactly once, whatever bytes it has.
		r.URL.RawPath = r.URL.EscapedPath()
		next.ServeHTTP(w, r)
	})
}

func (a *API) checkRequest(r *http.Request, crossOrigin *http.CrossOriginProtection) *problem {
	if a.hostMustBeLocal && !localHost(r.Host) {
		// Without tokens a web page could otherwise reach this port under a name of its own that resolves to loopback.
		return newProblem(http.StatusMisdirectedRequest, client.CodeMisdirected, "without tokens, Host must be localhost or a loopback address")
	}
	if crossOrigin.Check(r) != nil {
		return newProblem(http.StatusForbidden, client.CodeForbidden, "cross-origin requests may only read")
	}
	if enc := r.Header.Values("Content-Encoding"); len(enc) > 0 {
		return fieldProblem(http.StatusUnsupportedMediaType, client.CodeMediaType, "header.Content-Encoding", "is not taken: send the body as it is")
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("query", "is not a URL-encoded query")
	}
	for name, values := range q {
		if len(values) > 1 {
			return badRequest(join("query", name), "stands there twice")
		}
	}
	r.URL.RawQuery = q.Encode() // one spelling: huma's own reading of queries is lenient
	return nil
}

func localHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	return isLoopback(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
}

func isProbe(path string) bool { return path == "/healthz" || path == "/readyz" }

// notFound and notAllowed answer where chi has no route.
func notFound(w http.ResponseWriter, r *http.Request) {
	writeProblem(w, r, newProblem(http.StatusNotFound, client.CodeNotFound, "there is no such path"))
}

func (a *API) notAllowed(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		if a.mux.Match(chi.NewRouteContext(), m, r.URL.RawPath) {
			allowed = append(allowed, m)
		}
	}
	p := newProblem(http.StatusMethodNotAllowed, client.CodeMethodNotAllowed, "the path does not take this method")
	writeProblem(w, r, p.with("Allow", strings.Join(allowed, ", ")))
}

// authorize checks token and role of an operation. It runs before the body is read.
func (a *API) authorize(role Role) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humachi.Unwrap(ctx)
		info := infoFrom(r.Context())
		info.write = !reads(r)
		info.subject = subject(r)
		if role == RoleNone {
			next(ctx)
			return
		}
		tokens := a.tokens.Load()
		if tokens == nil { // no tokens configured: Validate saw to it that this is loopback or meant so
			info.who = "local"
			next(ctx)
			return
		}
		presented, ok := bearer(r.Header.Values("Authorization"))
		var t token
		if ok {
			t, ok = findToken(*tokens, presented)
		}
		if !ok {
			p := newProblem(http.StatusUnauthorized, client.CodeUnauthorized, "a valid bearer token is needed").with("WWW-Authenticate", `Bearer realm="turnout"`)
			if a.failures.Allow() {
				a.log.Warn("admin request without a valid token", "from", remoteIP(r), "method", r.Method, "route", ctx.Operation().Path, "request_id", info.id)
			}
			writeProblem(w, r, p)
			return
		}
		info.who = t.name
		if t.role < role {
			writeProblem(w, r, newProblem(http.StatusForbidden, client.CodeForbidden, "the token's role is "+t.role.String()+", this needs "+role.String()))
			return
		}
		next(ctx)
	}
}

// reads reports whether the request changes nothing.
func reads(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

// subject is what a path is about: its last parameter, with the cluster in front of a node.
func subject(r *http.Request) string {
	var parts []string
	for _, name := range []string{"cluster", "node", "key", "gateway"} {
		if v, err := url.PathUnescape(r.PathValue(name)); err == nil && v != "" {
			parts = append(parts, v)
		}
	}
	return strings.Join(parts, "/")
}

// conditions refuses a condition that the operation would otherwise overlook.
func conditions(ctx huma.Context, next func(huma.Context)) {
	r, w := humachi.Unwrap(ctx)
	if !reads(r) {
		for _, name := range []string{"If-Match", "If-None-Match"} {
			if r.Header.Get(name) != "" && !takesHeader(ctx.Operation(), name) {
				writeProblem(w, r, badRequest("header."+name, "is not taken by this operation"))
				return
			}
		}
	}
	next(ctx)
}

func takesHeader(op *huma.Operation, name string) bool {
	for _, p := range op.Parameters {
		if p.In == "header" && p.Name == name {
			return true
		}
	}
	return false
}

// noBody refuses a body where none is taken. Without one there is nothing left to read, and the read deadline, which would cancel a
// handler that waits for the cluster, can go.
func noBody(ctx huma.Context, next func(huma.Context)) {
	r, w := humachi.Unwrap(ctx)
	if r.ContentLength != 0 {
		writeProblem(w, r, badRequest("body", "is not taken by this operation"))
		return
	}
	setReadDeadline(w, time.Time{})
	next(ctx)
}

// strictBody reads a JSON body within its bounds and checks it against the operation's type, before huma sees it.
func strictBody(t reflect.Type, limit int64) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humachi.Unwrap(ctx)
		if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
			writeProblem(w, r, fieldProblem(http.StatusUnsupportedMediaType, client.CodeMediaType, "header.Content-Type", "must be application/json"))
			return
		}
		b, p := readBody(w, r, limit)
		if p == nil && len(bytes.TrimSpace(b)) == 0 {
			p = badRequest("body", "is missing")
		}
		if p == nil {
			p = decodeStrict(b, reflect.New(t).Interface(), "body")
		}
		if p != nil {
			writeProblem(w, r, p)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
		next(ctx)
	}
}

// bodyTimeout bounds the arrival of one JSON body, and of one batch of an import.
const bodyTimeout = 30 * time.Second

// readBody reads a whole body of at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, *problem) {
	if r.ContentLength > limit {
		return nil, tooLarge("body", limit)
	}
	setReadDeadline(w, deadline(bodyTimeout))
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, readProblem(err, "body", limit)
	}
	// Behind the body the deadline would cancel a handler that waits for the cluster.
	setReadDeadline(w, time.Time{})
	return b, nil
}

func tooLarge(location string, limit int64) *problem {
	p := newProblem(http.StatusRequestEntityTooLarge, client.CodeTooLarge, "the request is too large")
	p.Errors = []client.FieldError{{Location: location, Message: "must be at most " + byteCount(limit)}}
	return p
}

// readProblem tells why a body could not be read, without the error's own text.
func readProblem(err error, location string, limit int64) *problem {
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return tooLarge(location, limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fieldProblem(http.StatusRequestTimeout, client.CodeRequestTimeout, location, "did not arrive in time")
	}
	return badRequest(location, "ended early")
}

// setReadDeadline moves the connection's read deadline. A writer without one (in tests) has no slow sender either.
func setReadDeadline(w http.ResponseWriter, t time.Time) {
	_ = http.NewResponseController(w).SetReadDeadline(t)
}

func setWriteDeadline(w http.ResponseWriter, t time.Time) {
	_ = http.NewResponseController(w).SetWriteDeadline(t)
}
