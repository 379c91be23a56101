package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"turnout/api/client"
)

// requestInfo gathers what the audit line of one request says. Only the goroutine that serves the request touches it.
type requestInfo struct {
	id      string
	who     string // name of the token
	write   bool
	subject string // device key, cluster, node or gateway
	code    string // of the problem, "" on success
	outcome string // of a command to a device
	before  uint64 // version of the record that was there, 0 when there was none or it is not known
	after   uint64
	index   uint64
	lines   int // committed by an import
}

type infoKey struct{}

// infoFrom returns the request's info, nil outside of a request.
func infoFrom(ctx context.Context) *requestInfo {
	info, _ := ctx.Value(infoKey{}).(*requestInfo)
	return info
}

// observe gives the request its id, counts it and writes the audit line of a write when it is over, refused or not.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := a.now()
		info := &requestInfo{id: newID()}
		r = r.WithContext(context.WithValue(r.Context(), infoKey{}, info))
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		h := ww.Header()
		h.Set("X-Request-Id", info.id)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		defer func() {
			route := chi.RouteContext(r.Context()).RoutePattern()
			status := ww.Status()
			if status == 0 {
				status = http.StatusOK
			}
			a.metrics.observe(route, r.Method, status, a.now().Sub(start))
			if info.write {
				a.auditLine(r, info, route, status)
			}
		}()
		next.ServeHTTP(ww, r)
	})
}

// auditLine writes who did what and how it went. Lines of requests without a valid token are limited in rate: anybody can cause them.
func (a *API) auditLine(r *http.Request, info *requestInfo, route string, status int) {
	if info.code == client.CodeUnauthorized && !a.failures.Allow() {
		return
	}
	code := info.code
	if code == "" {
		code = "ok"
	}
	attrs := []slog.Attr{
		slog.String("who", info.who), slog.String("from", remoteIP(r)), slog.String("method", r.Method), slog.String("route", route),
		slog.String("subject", strconv.Quote(cut(info.subject, 128))), slog.String("code", code), slog.Int("status", status),
		slog.String("request_id", info.id),
	}
	for name, v := range map[string]uint64{"before": info.before, "after": info.after, "index": info.index, "lines": uint64(info.lines)} {
		if v > 0 {
			attrs = append(attrs, slog.Uint64(name, v))
		}
	}
	if info.outcome != "" {
		attrs = append(attrs, slog.String("outcome", info.outcome))
	}
	// The request may be cancelled by now; its end is logged all the same.
	a.audit.LogAttrs(context.WithoutCancel(r.Context()), slog.LevelInfo, "admin write", attrs...)
}

// recoverPanics turns a panic into a 500, or breaks the connection off when the answer has begun.
func (a *API) recoverPanics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler { // the handler's own way to break off
				panic(v)
			}
			a.log.Error("request panicked", "request_id", infoFrom(r.Context()).id, "panic", panicText(v), "stack", string(debug.Stack()))
			if ww, ok := w.(middleware.WrapResponseWriter); ok && ww.Status() != 0 {
				infoFrom(r.Context()).code = client.CodeInternal
				panic(http.ErrAbortHandler)
			}
			writeProblem(w, r, newProblem(http.StatusInternalServerError, client.CodeInternal, "the gateway could not answer"))
		}()
		next.ServeHTTP(w, r)
	})
}

// panicText names a panic. The text of a runtime error is the compiler's; any other value might be made of a request.
func panicText(v any) string {
	if err, ok := v.(runtime.Error); ok {
		return cut(err.Error(), 256)
	}
	return fmt.Sprintf("%T", v)
}

// remoteIP is the other end of the connection; headers that claim something else are for anybody to write.
func remoteIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// newID returns 16 random hexadecimal digits.
func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails on Linux
	return hex.EncodeToString(b[:])
}

// serverLog takes what net/http has to say about connections, such as failed handshakes.
func serverLog(log *slog.Logger) *slogWriter { return &slogWriter{log: log} }

type slogWriter struct{ log *slog.Logger }

// Write implements io.Writer.
func (w *slogWriter) Write(b []byte) (int, error) {
	w.log.Debug("admin connection", "event", cut(string(b), 256))
	return len(b), nil
}

// deadline returns a time that far from now; deadlines of connections are by the real clock.
func deadline(d time.Duration) time.Time { return time.Now().Add(d) }
