package harness

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Roles of an EMQX API key (5.4 and later).
const (
	RoleAdministrator = "administrator"
	RoleViewer        = "viewer"    // GET only
	RolePublisher     = "publisher" // POST /publish only
)

// ManagementAPIOptions describe the management API double of one cluster.
type ManagementAPIOptions struct {
	Cluster *Cluster     // required
	Address string       // IPv4 host:port; "" is a free port of 127.0.0.1
	Key     string       // API key; required
	Secret  string       // API secret; required
	Role    string       // "" is RoleAdministrator
	Logger  *slog.Logger // nil discards
}

// ManagementAPI answers like the REST API of EMQX 5.8.9 for a Cluster:
//
//	GET    /api/v5/nodes               running members in full, stopped ones as node, node_status and role
//	GET    /api/v5/cluster             names of the running members
//	GET    /api/v5/listeners           the tcp:default listener, bind of the answering member
//	GET    /api/v5/clients/{clientid}  one session, offline persistent ones too
//	DELETE /api/v5/clients/{clientid}  kick
//	POST   /api/v5/publish             200 dispatched, 202 nobody subscribed, 400 in two shapes, 503 on request
//	GET    /status, /api/v5/status     no authentication
//
// The member that answers is the first running one; with none running everything is 503 with an empty body, as while
// the broker's HTTP API is not ready. All methods may be called from any goroutine.
//
// Lock order: life before mu.
type ManagementAPI struct {
	o   ManagementAPIOptions
	log *slog.Logger

	life   sync.Mutex // serialises Start, SetFault and Close
	port   *heldPort
	server *http.Server
	served chan struct{} // closed when server.Serve returned
	closed bool

	mu          sync.Mutex
	idle        *sync.Cond // active fell to 0
	active      int        // requests being handled
	address     string
	fault       Fault
	changed     chan struct{} // closed when fault changes
	hidden      map[string]bool
	stopped     map[string]bool
	failPublish bool
	requests    map[string]int
}

// NewManagementAPI allocates the API; Start opens it.
func NewManagementAPI(o ManagementAPIOptions) (*ManagementAPI, error) {
	if o.Cluster == nil || o.Key == "" || o.Secret == "" {
		return nil, errors.New("check options: Cluster, Key and Secret are required")
	}
	switch o.Role {
	case "":
		o.Role = RoleAdministrator
	case RoleAdministrator, RoleViewer, RolePublisher:
	default:
		return nil, fmt.Errorf("check options: Role %q is not a role", o.Role)
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &ManagementAPI{
		o: o, log: log, changed: make(chan struct{}), requests: make(map[string]int),
		hidden: make(map[string]bool), stopped: make(map[string]bool),
	}
	a.idle = sync.NewCond(&a.mu)
	return a, nil
}

// Start opens the listener. Starting a started API does nothing.
func (a *ManagementAPI) Start() error {
	a.life.Lock()
	defer a.life.Unlock()
	if a.closed {
		return errors.New("start api: it is closed")
	}
	if a.port == nil {
		port, err := holdPort(a.o.Address)
		if err != nil {
			return fmt.Errorf("start api: %w", err)
		}
		a.port = port
	}
	return a.open()
}

// open starts serving if nothing does. Called under life.
func (a *ManagementAPI) open() error {
	if a.server != nil {
		return nil
	}
	ln, err := a.port.listen()
	if err != nil {
		return fmt.Errorf("open api: %w", err)
	}
	a.mu.Lock()
	a.address = a.port.address
	a.mu.Unlock()
	server := &http.Server{
		Handler:           a,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			a.log.Warn("api stopped serving", "reason", err.Error())
		}
	}()
	a.server, a.served = server, served
	return nil
}

// shut closes listener and connections and waits for the requests in hand. Called under life.
func (a *ManagementAPI) shut() {
	if a.server == nil {
		return
	}
	_ = a.server.Close()
	<-a.served
	a.server = nil
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.active > 0 {
		a.idle.Wait()
	}
}

// Close stops the API for good and gives its port back. It is idempotent.
func (a *ManagementAPI) Close() error {
	a.life.Lock()
	defer a.life.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	a.shut()
	if a.port != nil {
		a.port.release()
	}
	return nil
}

// URL returns http://127.0.0.1:port, without the /api/v5 of the paths; "" before Start.
func (a *ManagementAPI) URL() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.address == "" {
		return ""
	}
	return "http://" + a.address
}

// Requests returns how often each route was asked for, keyed "GET /api/v5/nodes", "DELETE /api/v5/clients/{clientid}"
// and so on; a path that is no route counts under "other".
func (a *ManagementAPI) Requests() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.requests)
}

// Routes that the double knows.
const (
	routeStatus    = "/status"
	routeStatusV5  = "/api/v5/status"
	routeNodes     = "/api/v5/nodes"
	routeCluster   = "/api/v5/cluster"
	routeListeners = "/api/v5/listeners"
	routeClient    = "/api/v5/clients/{clientid}"
	routePublish   = "/api/v5/publish"
	routeRedirect  = "/redirected" // where FaultRedirect points; asked for only by who follows
)

// route finds the route of a path and its client identifier, which may hold any percent-encoded byte.
func route(escaped string) (name, clientID string, ok bool) {
	switch escaped {
	case routeStatus, routeStatusV5, routeNodes, routeCluster, routeListeners, routePublish, routeRedirect:
		return escaped, "", true
	}
	segment, found := strings.CutPrefix(escaped, "/api/v5/clients/")
	if !found || segment == "" || strings.Contains(segment, "/") {
		return "", "", false
	}
	id, err := url.PathUnescape(segment)
	if err != nil {
		return "", "", false
	}
	return routeClient, id, true
}

func allowedMethods(name string) []string {
	switch name {
	case routeClient:
		return []string{http.MethodGet, http.MethodDelete}
	case routePublish:
		return []string{http.MethodPost}
	}
	return []string{http.MethodGet}
}

// ServeHTTP implements http.Handler, so that the API can also be mounted in a server with TLS.
func (a *ManagementAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, clientID, known := route(r.URL.EscapedPath())
	fault, changed := a.enter(r.Method, name, known)
	defer a.leave()
	if fault.answer(a.URL(), name, w, r, changed) {
		return
	}
	if !known || name == routeRedirect {
		notFoundPath(w, r)
		return
	}
	if !methodAllowed(w, r, allowedMethods(name)) {
		return
	}
	self := a.self()
	if self == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if name == routeStatus || name == routeStatusV5 {
		a.status(w, r, self)
		return
	}
	if !a.authorize(w, r, name) {
		return
	}
	switch name {
	case routeNodes:
		writeJSON(w, http.StatusOK, a.nodes())
	case routeCluster:
		writeJSON(w, http.StatusOK, a.cluster(self))
	case routeListeners:
		writeJSON(w, http.StatusOK, a.listeners(self, r.URL.Query().Get("type")))
	case routePublish:
		a.publish(w, r)
	case routeClient:
		a.client(w, r, clientID)
	}
}

func (a *ManagementAPI) enter(method, name string, known bool) (Fault, <-chan struct{}) {
	key := "other"
	if known {
		key = method + " " + name
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.active++
	a.requests[key]++
	return a.fault, a.changed
}

func (a *ManagementAPI) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.active--; a.active == 0 {
		a.idle.Broadcast()
	}
}

func methodAllowed(w http.ResponseWriter, r *http.Request, allowed []string) bool {
	for _, m := range allowed {
		if r.Method == m {
			return true
		}
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	w.WriteHeader(http.StatusMethodNotAllowed)
	return false
}

// notFoundPath answers an unknown path: HTML, unless the caller asked for JSON.
func notFoundPath(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		writeError(w, http.StatusNotFound, "NOT_FOUND", "Request Path Not Found")
		return
	}
	writeHTML404(w)
}

func writeHTML404(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(http.StatusNotFound)
	_, _ = w.Write([]byte("<!DOCTYPE html><html><head><title>404</title></head><body>404 - NOT FOUND</body></html>"))
}

// authorize checks the API key and its role, and answers the request itself when it says no.
func (a *ManagementAPI) authorize(w http.ResponseWriter, r *http.Request, name string) bool {
	header := r.Header.Get("Authorization")
	key, secret, basic := r.BasicAuth()
	switch {
	case strings.HasPrefix(header, "Bearer "): // no dashboard login here, so no token is known
		writeError(w, http.StatusUnauthorized, "BAD_TOKEN", "The token is unknown")
		return false
	case !basic:
		w.Header().Set("WWW-Authenticate", `Basic Realm="emqx-dashboard"`)
		writeError(w, http.StatusUnauthorized, "AUTHORIZATION_HEADER_ERROR", "Support authorization: basic/bearer")
		return false
	}
	sameKey := subtle.ConstantTimeCompare([]byte(key), []byte(a.o.Key))
	sameSecret := subtle.ConstantTimeCompare([]byte(secret), []byte(a.o.Secret))
	if sameKey&sameSecret != 1 {
		w.Header().Set("WWW-Authenticate", `Basic Realm="emqx-dashboard"`)
		writeError(w, http.StatusUnauthorized, "BAD_API_KEY_OR_SECRET", "Check api_key/api_secret")
		return false
	}
	if (a.o.Role == RoleViewer && r.Method != http.MethodGet) || (a.o.Role == RolePublisher && name != routePublish) {
		writeError(w, http.StatusForbidden, "UNAUTHORIZED_ROLE", "This API key does not have permission")
		return false
	}
	return true
}

func writeError(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, map[string]string{"code": code, "message": message})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the peer may be gone; there is nobody to tell
}

// waitGone blocks until the caller gave up or the fault changed, and then drops the connection without an answer.
func waitGone(ctx context.Context, changed <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-changed:
	}
	panic(http.ErrAbortHandler)
}
