package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"turnout/fsm"
)

// Options are what an API is made of. Tables, Proposer, Peers, Router and Commander are needed, the rest may be left out.
type Options struct {
	Config    Config
	Tables    *fsm.Tables
	Proposer  Proposer
	Peers     Peers
	Router    Router
	Commander Commander
	// CheckIdentity tells whether an identity template can be used; nil takes what the tables take. Its error's text is not passed on.
	CheckIdentity func(template string) error
	// Ready returns why the gateway is not ready, nothing when it is.
	Ready      func() []string
	Release    string // version of the binary
	Logger     *slog.Logger
	Audit      *slog.Logger          // of audit lines; nil means Logger
	Registerer prometheus.Registerer // for the API's own series
	Gatherer   prometheus.Gatherer   // behind /metrics; nil serves an empty one
}

// API is the admin API of one gateway.
type API struct {
	config        Config
	tables        *fsm.Tables
	proposer      Proposer
	peers         Peers
	router        Router
	commander     Commander
	checkIdentity func(string) error
	ready         func() []string
	release       string
	log, audit    *slog.Logger
	gatherer      prometheus.Gatherer
	metrics       *Metrics
	now           func() time.Time

	mux             *chi.Mux
	huma            huma.API
	document        []byte                  // of /openapi.json
	tokens          atomic.Pointer[[]token] // nil when none are configured
	certificate     *certificate            // nil without TLS
	hostMustBeLocal bool
	slots           chan struct{} // one for each request that may be served at once
	failures        *rate.Limiter // log lines about requests without a valid token

	mu     sync.Mutex // guards server
	server *server    // nil before Open
}

// maxRequests bounds the requests that are served at once, probes excepted.
const maxRequests = 256

// New checks the configuration, reads tokens and certificate and builds the routes. It does not listen.
func New(o Options) (*API, error) {
	if err := o.Config.Validate(); err != nil {
		return nil, err
	}
	if o.Tables == nil || o.Proposer == nil || o.Peers == nil || o.Router == nil || o.Commander == nil {
		return nil, errors.New("api: tables, proposer, peers, router and commander are needed")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Audit == nil {
		o.Audit = o.Logger
	}
	if o.Gatherer == nil {
		o.Gatherer = prometheus.NewRegistry()
	}
	if o.Ready == nil {
		o.Ready = func() []string { return nil }
	}
	if o.CheckIdentity == nil {
		o.CheckIdentity = func(string) error { return nil }
	}
	a := &API{
		config: o.Config, tables: o.Tables, proposer: o.Proposer, peers: o.Peers, router: o.Router, commander: o.Commander,
		checkIdentity: o.CheckIdentity, ready: o.Ready, release: o.Release, log: o.Logger, audit: o.Audit, gatherer: o.Gatherer,
		metrics: NewMetrics(o.Registerer), now: time.Now, mux: chi.NewMux(),
		hostMustBeLocal: o.Config.TokensFile == "" && !o.Config.Insecure,
		slots:           make(chan struct{}, maxRequests),
		failures:        rate.NewLimiter(rate.Every(time.Second), 10),
	}
	if o.Config.TLS.enabled() {
		var err error
		if a.certificate, err = newCertificate(o.Config.TLS, o.Logger, a.now); err != nil {
			return nil, err
		}
	}
	if err := a.reloadTokens(); err != nil {
		return nil, err
	}
	return a, a.routes()
}

func (a *API) routes() error {
	a.mux.Use(a.observe, a.recoverPanics, a.guard, middleware.GetHead)
	a.mux.NotFound(notFound)
	a.mux.MethodNotAllowed(a.notAllowed)
	a.huma = newHuma(a)
	a.registerHealth()
	a.registerClusters()
	a.registerNodes()
	a.registerDevices()
	a.registerBulk()
	a.registerCommands()
	a.registerSettings()
	a.registerGateways()
	var err error
	if a.document, err = a.openAPI(); err != nil {
		return fmt.Errorf("encode openapi: %w", err)
	}
	return nil
}

// Handler serves the API without a listener.
func (a *API) Handler() http.Handler { return a.mux }

// Reload reads tokens file and certificate again. What cannot be read stays as it was, and the error says so.
func (a *API) Reload() error {
	err := a.reloadTokens()
	if a.certificate != nil {
		err = errors.Join(err, a.certificate.reload())
	}
	return err
}

func (a *API) reloadTokens() error {
	if a.config.TokensFile == "" {
		return nil
	}
	tokens, err := loadTokens(a.config.TokensFile, a.log)
	if err != nil {
		return err
	}
	a.tokens.Store(&tokens)
	return nil
}
