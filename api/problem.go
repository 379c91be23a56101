package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"turnout/api/client"
	"turnout/fsm"
)

// problem is a refusal on its way out. It is the only error that handlers return; huma asks it for status, headers and content type.
type problem struct {
	client.Problem
	header http.Header
}

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int { return p.Status }

// GetHeaders implements huma.HeadersError.
func (p *problem) GetHeaders() http.Header { return p.header }

// ContentType implements huma.ContentTypeFilter.
func (p *problem) ContentType(string) string { return "application/problem+json" }

func newProblem(status int, code, detail string) *problem {
	return &problem{Problem: client.Problem{
		Type: "urn:turnout:problem:" + code, Title: http.StatusText(status), Status: status, Code: code, Detail: detail,
	}}
}

// fieldProblem is a refusal about one part of the request.
func fieldProblem(status int, code, location, message string) *problem {
	p := newProblem(status, code, "the request is not acceptable")
	p.Errors = []client.FieldError{{Location: location, Message: message}}
	return p
}

func (p *problem) with(name, value string) *problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(name, value)
	return p
}

// refusal is the one place where what the tables and the consensus answer becomes an HTTP status. guarded tells that
// the request named the version it expects. Only texts of *fsm.Error get through, which never repeat values.
func refusal(err error, guarded bool) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	code := fsm.CodeOf(err)
	switch code {
	case fsm.CodeInvalid:
		p = newProblem(http.StatusUnprocessableEntity, string(code), "the request breaks a rule")
	case fsm.CodeNotFound:
		p = newProblem(http.StatusNotFound, string(code), "there is no such record")
	case fsm.CodeConflict:
		p = newProblem(http.StatusConflict, string(code), "the record is not in the expected state")
		if guarded {
			p = newProblem(http.StatusPreconditionFailed, string(code), "the record has another version than expected")
		}
	case fsm.CodeInUse:
		p = newProblem(http.StatusConflict, string(code), "something still refers to it")
	case fsm.CodeUnsupported:
		return newProblem(http.StatusNotImplemented, string(code), "a gateway of the cluster does not know this command yet")
	case fsm.CodeNoLeader:
		return newProblem(http.StatusServiceUnavailable, string(code), "no leader can be reached; nothing was written").with("Retry-After", "1")
	case fsm.CodeTimeout:
		return newProblem(http.StatusGatewayTimeout, string(code), "the write is committed, but this gateway has not applied it yet")
	default:
		return newProblem(http.StatusGatewayTimeout, client.CodeUnknown,
			"the outcome is not known: the write may or may not have been applied; read the record before trying again")
	}
	var e *fsm.Error
	if errors.As(err, &e) && e.Message != "" {
		p.Errors = []client.FieldError{{Location: location(e.Field), Message: e.Message}}
	}
	return p
}

// location turns a field in the terms of a command into a place in the request.
func location(field string) string {
	switch field {
	case "":
		return "body"
	case "name":
		return "path.cluster"
	case "node":
		return "path.node"
	case "key":
		return "path.key"
	case "id":
		return "path.gateway"
	case "version":
		return "header.If-Match"
	case "absent":
		return "header.If-None-Match"
	}
	return "body." + strings.TrimPrefix(field, "unknown.")
}

// finish makes the document that is sent of whatever huma was about to send as an error, and notes its code for the audit line. It
// takes over none of huma's values and, of its texts, only those that come from the schema.
func finish(info *requestInfo, v any) any {
	var p *problem
	switch v := v.(type) {
	case *problem:
		p = v
	case *huma.ErrorModel:
		p = fromHuma(v)
	default:
		return v
	}
	out := p.Problem
	if info != nil {
		info.code = out.Code
		out.RequestID = info.id
	}
	return &out
}

// fromHuma translates a refusal that huma made while reading parameters or checking the body against its schema.
func fromHuma(m *huma.ErrorModel) *problem {
	switch {
	case m.Status == http.StatusRequestEntityTooLarge:
		return newProblem(m.Status, client.CodeTooLarge, "the body is too large")
	case m.Status == http.StatusUnprocessableEntity:
		p := newProblem(m.Status, client.CodeInvalid, "the request is not acceptable")
		for _, e := range m.Errors {
			if e != nil && len(p.Errors) < 16 {
				p.Errors = append(p.Errors, client.FieldError{Location: cut(e.Location, maxLocationBytes), Message: e.Message})
			}
		}
		return p
	case m.Status >= 500:
		return newProblem(http.StatusInternalServerError, client.CodeInternal, "the gateway could not answer")
	}
	return newProblem(m.Status, client.CodeBadRequest, "the request is not readable")
}

// writeProblem answers outside of huma.
func writeProblem(w http.ResponseWriter, r *http.Request, p *problem) {
	for k, v := range p.header {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	// A write error means that the client is gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(finish(infoFrom(r.Context()), p))
}
