package api

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Bounds of connections.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 30 * time.Second // header and body; bodies set their own
	writeTimeout      = 2 * time.Minute  // over the longest wait for the cluster; streams set their own
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 16 << 10
	maxConnections    = 1024
)

// server is a listening API.
type server struct {
	http     *http.Server
	listener net.Listener
	done     chan struct{} // closed when the accept loop has ended
	open     atomic.Int64  // connections
}

// Open listens and begins to serve. It can be called once.
func (a *API) Open(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server != nil {
		return errors.New("open api: already open")
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.config.Address)
	if err != nil {
		return fmt.Errorf("listen api: %w", err)
	}
	s := &server{listener: ln, done: make(chan struct{})}
	s.http = &http.Server{
		Handler:           a.mux,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          stdlog.New(serverLog(a.log), "", 0),
		ConnState:         s.count,
		Protocols:         new(http.Protocols),
	}
	s.http.Protocols.SetHTTP1(true) // one protocol: its deadlines are those of the connection
	if a.certificate != nil {
		s.http.TLSConfig = a.certificate.config()
	}
	a.server = s
	go a.serve(s)
	a.log.Info("admin API listening", "address", ln.Addr().String(), "tls", a.certificate != nil, "tokens", a.tokens.Load() != nil)
	return nil
}

// serve is the accept loop; Close joins it.
func (a *API) serve(s *server) {
	defer close(s.done)
	var err error
	if a.certificate != nil {
		err = s.http.ServeTLS(s.listener, "", "")
	} else {
		err = s.http.Serve(s.listener)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		a.log.Error("admin API stopped", "error", err)
	}
}

// count closes connections over the bound as they come.
func (s *server) count(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if s.open.Add(1) > maxConnections {
			c.Close()
		}
	case http.StateClosed, http.StateHijacked:
		s.open.Add(-1)
	}
}

// Addr returns the address that is listened on, nil before Open.
func (a *API) Addr() net.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server == nil {
		return nil
	}
	return a.server.listener.Addr()
}

// Close stops accepting, lets running requests end until ctx ends, then breaks them off, and waits for the accept loop. It may be called again.
func (a *API) Close(ctx context.Context) error {
	a.mu.Lock()
	s := a.server
	a.mu.Unlock()
	if s == nil {
		return nil
	}
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("close api: %w", err), s.http.Close())
	}
	<-s.done
	return err
}
