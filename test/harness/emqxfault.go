package harness

import (
	"errors"
	"net/http"
	"strings"
)

// Fault is a way in which the management API misbehaves. It touches every route.
type Fault int

const (
	FaultNone         Fault = iota
	FaultUnreachable        // the port refuses connections; existing ones are cut
	FaultServerError        // 500 INTERNAL_ERROR
	FaultUnavailable        // 503 with an empty body
	FaultUnauthorized       // 401 BAD_API_KEY_OR_SECRET, whatever the key
	FaultEmptyList          // nodes and listeners are [], the cluster has no members; other routes work
	FaultHTML404            // 404 with an HTML page, whatever Accept says
	FaultGarbage            // 200 application/json with a body that breaks off
	FaultHang               // takes the request and answers nothing until the fault changes or the caller leaves
	FaultOversize           // 200 with a well-formed beginning and 64 MiB to come
	FaultRedirect           // 302 to URL()/redirected; Requests shows whether it was followed
)

// oversizeBytes is what FaultOversize sends at most.
const oversizeBytes = 64 << 20

// SetFault changes the behaviour from now on; requests that hang are dropped. FaultUnreachable closes the listener and
// every connection, any other fault opens the same port again. It must not be called before Start.
func (a *ManagementAPI) SetFault(f Fault) error {
	a.life.Lock()
	defer a.life.Unlock()
	if a.closed || a.port == nil {
		return errors.New("set fault: the API is not started")
	}
	a.mu.Lock()
	a.fault = f
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	if f == FaultUnreachable {
		a.shut()
		return nil
	}
	return a.open()
}

// HideNode leaves a member out of every answer, as EMQX does with a replicant that stopped or a member whose RPC
// failed. The member goes on serving MQTT.
func (a *ManagementAPI) HideNode(name string, hide bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hidden[name] = hide
}

// ReportStopped shows a member as a stopped core although it runs. A member that is really stopped is always shown so.
func (a *ManagementAPI) ReportStopped(name string, stopped bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped[name] = stopped
}

// FailPublish makes POST /publish answer 503 failed_to_dispatch without publishing.
func (a *ManagementAPI) FailPublish(fail bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failPublish = fail
}

// answer plays the fault and reports whether that settled the request.
func (f Fault) answer(base, name string, w http.ResponseWriter, r *http.Request, changed <-chan struct{}) bool {
	switch f {
	case FaultUnreachable: // a request that was already on its way when the port closed
		panic(http.ErrAbortHandler)
	case FaultServerError:
		writeError(w, http.StatusInternalServerError, "INTERNAL_ERROR", "{error,{badmatch,undefined}}")
	case FaultUnavailable:
		w.WriteHeader(http.StatusServiceUnavailable)
	case FaultUnauthorized:
		w.Header().Set("WWW-Authenticate", `Basic Realm="emqx-dashboard"`)
		writeError(w, http.StatusUnauthorized, "BAD_API_KEY_OR_SECRET", "Check api_key/api_secret")
	case FaultEmptyList:
		switch name {
		case routeNodes, routeListeners:
			writeJSON(w, http.StatusOK, []any{})
		case routeCluster:
			writeJSON(w, http.StatusOK, map[string]any{"name": "emqxcl", "nodes": []string{}, "self": ""})
		default:
			return false
		}
	case FaultHTML404:
		writeHTML404(w)
	case FaultGarbage:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`[{"node":"emqx@10.0.0.1","node_status":`))
	case FaultHang:
		waitGone(r.Context(), changed)
	case FaultOversize:
		oversize(w)
	case FaultRedirect:
		if name == routeRedirect {
			return false
		}
		w.Header().Set("Location", base+routeRedirect)
		w.WriteHeader(http.StatusFound)
	default:
		return false
	}
	return true
}

func oversize(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	item := `{"node":"` + strings.Repeat("x", 1000) + `@10.0.0.1","node_status":"running","role":"core"},`
	chunk := []byte(strings.Repeat(item, 64))
	if _, err := w.Write([]byte("[")); err != nil {
		return
	}
	for sent := 0; sent < oversizeBytes; sent += len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}
