package api

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"turnout/api/client"
)

// stream is an answer that writes itself.
type stream struct {
	Body func(huma.Context)
}

type healthBody struct {
	Status string `json:"status" doc:"ok: the process answers"`
}

type readyAnswer struct {
	Status int
	Body   client.Readiness
}

// responses documents a success that is not JSON.
func responses(contentType, description string) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {
		Description: description,
		Content:     map[string]*huma.MediaType{contentType: {Schema: &huma.Schema{Type: huma.TypeString}}},
	}}
}

func (a *API) registerHealth() {
	register(a, RoleNone, get("healthz", "/healthz", "Tell that the process is alive"),
		func(context.Context, *struct{}) (*struct{ Body healthBody }, error) {
			return &struct{ Body healthBody }{healthBody{Status: "ok"}}, nil
		})
	register(a, RoleNone, get("readyz", "/readyz", "Tell whether the gateway should get devices: 200, or 503 with the reasons"),
		func(context.Context, *struct{}) (*readyAnswer, error) {
			out := &readyAnswer{Status: http.StatusOK, Body: client.Readiness{Ready: true, Reasons: []string{}}}
			if reasons := a.ready(); len(reasons) > 0 {
				out.Status, out.Body = http.StatusServiceUnavailable, client.Readiness{Reasons: reasons}
			}
			return out, nil
		})

	role := RoleRead
	if a.config.MetricsPublic {
		role = RoleNone
	}
	metrics := promhttp.HandlerFor(a.gatherer, promhttp.HandlerOpts{DisableCompression: true, MaxRequestsInFlight: 8})
	metricsOp := get("metrics", "/metrics", "Metrics in Prometheus text form")
	metricsOp.Responses = responses("text/plain", "Prometheus text format")
	register(a, role, metricsOp, func(context.Context, *struct{}) (*stream, error) {
		return &stream{Body: func(ctx huma.Context) {
			r, w := humachi.Unwrap(ctx)
			metrics.ServeHTTP(w, r)
		}}, nil
	})

	documentOp := get("openapi", "/openapi.json", "This API as an OpenAPI 3.1 document")
	documentOp.Responses = responses("application/openapi+json", "OpenAPI 3.1 document")
	register(a, RoleNone, documentOp, func(context.Context, *struct{}) (*stream, error) {
		return &stream{Body: func(ctx huma.Context) {
			ctx.SetHeader("Content-Type", "application/openapi+json")
			_, _ = ctx.BodyWriter().Write(a.document) // an error means that the client is gone
		}}, nil
	})
}

// openAPI encodes the document once, when all operations are there.
func (a *API) openAPI() ([]byte, error) {
	doc := a.huma.OpenAPI()
	// huma describes its own error type although every operation answers with ours.
	delete(doc.Components.Schemas.Map(), "ErrorModel")
	delete(doc.Components.Schemas.Map(), "ErrorDetail")
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", " "); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
