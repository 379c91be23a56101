package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"turnout/api/client"
	"turnout/fsm"
)

// Bounds of JSON bodies in bytes. A command may carry a payload of 1 MiB, as base64.
const (
	maxBody        = 1 << 20
	maxCommandBody = 2 << 20
)

// newHuma makes the huma API on a.mux. No documentation pages, no schema links: the document is served by openapi.go.
func newHuma(a *API) huma.API {
	format := huma.Format{
		Marshal: func(w io.Writer, v any) error {
			enc := json.NewEncoder(w)
			enc.SetEscapeHTML(false)
			return enc.Encode(v)
		},
		Unmarshal: json.Unmarshal, // strictBody has looked at the bytes before
	}
	return humachi.New(a.mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Turnout admin API", Version: "1",
				Description: "Broker clusters, devices and gateways of a Turnout cluster. Device keys and node names in paths are percent-encoded, byte for byte.",
			},
			Components: &huma.Components{
				Schemas:         huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{"bearer": {Type: "http", Scheme: "bearer"}},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers: []huma.Transformer{func(ctx huma.Context, _ string, v any) (any, error) {
			return finish(infoFrom(ctx.Context()), v), nil
		}},
	})
}

// register adds an operation. Every operation names its role, which the OpenAPI document repeats as x-turnout-role. A handler's error becomes a problem
// through refusal.
func register[I, O any](a *API, role Role, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	op.Extensions = map[string]any{"x-turnout-role": role.String()}
	if role != RoleNone {
		op.Security = []map[string][]string{{"bearer": {role.String()}}}
	}
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	op.Responses["default"] = &huma.Response{
		Description: "A problem document (RFC 9457)",
		Content: map[string]*huma.MediaType{"application/problem+json": {
			Schema: a.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[client.Problem](), true, ""),
		}},
	}
	op.Middlewares = append(op.Middlewares, a.authorize(role), conditions)
	if body, ok := reflect.TypeFor[I]().FieldByName("Body"); ok {
		if op.MaxBodyBytes == 0 {
			op.MaxBodyBytes = maxBody
		}
		op.Middlewares = append(op.Middlewares, strictBody(body.Type, op.MaxBodyBytes))
		op.MaxBodyBytes++ // huma refuses from this many on
		op.BodyReadTimeout = -1
	} else if op.RequestBody == nil { // an import reads its body itself
		op.Middlewares = append(op.Middlewares, noBody)
	}
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, in)
		if err != nil {
			return nil, refusal(err, false)
		}
		return out, nil
	})
}

// answer is the common form of answers. Index is the state of the tables that the answer is at least as new as, or of the write.
type answer[T any] struct {
	Index uint64 `header:"Turnout-Index" doc:"Raft index that the answer is at least as new as"`
	ETag  string `header:"ETag" doc:"Version of the record in quotes, for If-Match"`
	Body  T
}

func etag(version uint64) string { return strconv.Quote(strconv.FormatUint(version, 10)) }

// WriteParams let a write wait for all gateways.
type WriteParams struct {
	Wait        string `query:"wait" enum:"all" doc:"all: answer when every gateway has applied the write; the answer lists those that have not"`
	WaitTimeout string `query:"wait_timeout" doc:"Bound of that wait, such as 500ms or 30s; 10s by default, at most 60s" example:"10s"`
}

// The wait for all gateways.
const (
	defaultWait = 10 * time.Second
	maxWait     = 60 * time.Second
)

// timeout returns the bound of the wait, 0 when there is none.
func (p WriteParams) timeout() (time.Duration, *problem) {
	switch {
	case p.Wait == "" && p.WaitTimeout == "":
		return 0, nil
	case p.Wait == "":
		return 0, unprocessable("query.wait_timeout", "is only for wait=all")
	case p.WaitTimeout == "":
		return defaultWait, nil
	}
	d, err := time.ParseDuration(p.WaitTimeout)
	if err != nil || d <= 0 || d > maxWait {
		return 0, unprocessable("query.wait_timeout", "must be a duration up to 60s, such as 500ms or 10s")
	}
	return d, nil
}

// MatchParams guard a write by the version that the record must have.
type MatchParams struct {
	IfMatch string `header:"If-Match" doc:"Version that the record must have, as in its ETag"`
}

// CreateParams also let a write demand that there is no record yet.
type CreateParams struct {
	MatchParams
	IfNoneMatch string `header:"If-None-Match" doc:"* demands that the record does not exist"`
}

// version returns the expected version, nil for any.
func (p MatchParams) version() (*uint64, *problem) {
	if p.IfMatch == "" {
		return nil, nil
	}
	s := p.IfMatch
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || v == 0 || strings.HasPrefix(s, "+") {
		return nil, badRequest("header.If-Match", "must be one version in quotes, as in the record's ETag")
	}
	return &v, nil
}

func (p CreateParams) version() (*uint64, *problem) {
	switch {
	case p.IfNoneMatch == "":
		return p.MatchParams.version()
	case p.IfNoneMatch != "*":
		return nil, badRequest("header.If-None-Match", "must be *")
	case p.IfMatch != "":
		return nil, badRequest("header.If-None-Match", "does not go with If-Match")
	}
	return new(uint64), nil
}

// proposeTimeout bounds how long a write waits for the consensus.
const proposeTimeout = 15 * time.Second

// propose carries a command into the tables and notes what the audit line says of it.
func (a *API) propose(ctx context.Context, cmd fsm.Command, guarded bool) (fsm.Result, *problem) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	res, err := a.proposer.Propose(ctx, cmd)
	if err == nil {
		err = res.Err()
	}
	if err != nil {
		return res, refusal(err, guarded)
	}
	if info := infoFrom(ctx); info != nil {
		info.index, info.after = res.Index, res.Version
	}
	return res, nil
}

// write proposes a command and answers with its result, after the wait that was asked for. before is the version that is there now.
func (a *API) write(ctx context.Context, cmd fsm.Command, p WriteParams, before uint64, guarded bool) (*answer[client.WriteResult], error) {
	wait, bad := p.timeout()
	if bad != nil {
		return nil, bad
	}
	infoFrom(ctx).before = before
	res, bad := a.propose(ctx, cmd, guarded)
	if bad != nil {
		return nil, bad
	}
	out := &answer[client.WriteResult]{Index: res.Index, Body: client.WriteResult{Index: res.Index, Version: res.Version}}
	if res.Version > 0 {
		out.ETag = etag(res.Version)
	}
	if wait > 0 {
		out.Body.Lagging = a.lagging(ctx, res.Index, wait)
	}
	return out, nil
}

// lagging waits for all gateways and names those that are not known to have applied index. The write stands whatever comes of it, so
// there is no error: when the wait could not be made, every other gateway is named.
func (a *API) lagging(ctx context.Context, index uint64, wait time.Duration) []string {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	ids, err := a.proposer.WaitAll(ctx, index)
	if err != nil && len(ids) == 0 && !errors.Is(err, context.Canceled) {
		self := a.peers.Status().ID
		for _, g := range a.tables.Topology().Gateways {
			if g.ID != self {
				ids = append(ids, g.ID)
			}
		}
	}
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = string(id)
	}
	return out
}

func byteCount(n int64) string { return strconv.FormatInt(n, 10) + " bytes" }

// list is an answer without a version of its own.
func list[T any](index uint64, body T) *answer[T] { return &answer[T]{Index: index, Body: body} }

// record is an answer with one.
func record[T any](index, version uint64, body T) *answer[T] {
	return &answer[T]{Index: index, ETag: etag(version), Body: body}
}

func get(id, path, summary string) huma.Operation {
	return huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Summary: summary}
}

func op(id, method, path, summary string) huma.Operation {
	return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary}
}
