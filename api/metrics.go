package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the API's own series. Labels are bounded: routes are patterns, unknown methods are one.
type Metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// NewMetrics makes the series and registers them; r may be nil. It panics when they are registered already, which is a mistake of the caller.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "turnout_api_requests_total", Help: "Requests to the admin API by route pattern, method and HTTP status.",
		}, []string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "turnout_api_request_duration_seconds", Help: "Time from the request's header to the end of the answer.",
			Buckets: []float64{.001, .005, .025, .1, .5, 1, 5, 15, 60},
		}, []string{"route", "method"}),
	}
	if r != nil {
		r.MustRegister(m.requests, m.duration)
	}
	return m
}

func (m *Metrics) observe(route, method string, status int, took time.Duration) {
	if route == "" {
		route = "unmatched"
	}
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		method = "other"
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	m.duration.WithLabelValues(route, method).Observe(took.Seconds())
}
