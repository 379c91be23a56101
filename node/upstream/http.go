package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"
)

const (
	httpTimeout   = 5 * time.Second // of one request, answer included
	maxBodyBytes  = 1 << 20         // of one answer
	maxHeaderSize = 64 << 10
)

// httpClient talks to management APIs: through the guard, without redirects, without the proxy settings of the environment,
// cookies or compression, with a bound on time and size.
type httpClient struct {
	client *http.Client
}

func newHTTPClient(g *Guard) *httpClient {
	return &httpClient{client: &http.Client{
		Timeout: httpTimeout,
		Transport: &http.Transport{
			DialContext:            g.DialContext,
			Proxy:                  nil,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeaderSize,
			TLSHandshakeTimeout:    httpTimeout,
			MaxIdleConnsPerHost:    2,
			MaxIdleConns:           256,
			IdleConnTimeout:        time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// close drops idle connections.
func (h *httpClient) close() { h.client.CloseIdleConnections() }

// call is one request.
type call struct {
	method string
	url    *url.URL
	cred   credential
	body   []byte // JSON, nil for none
}

// answer is the status and the whole body of a response.
type answer struct {
	status int
	body   []byte
}

// do sends the request. reached tells whether a connection to the server was there, after which the request may have been
// handed over whatever the error says. Errors are of type *Error.
func (h *httpClient) do(ctx context.Context, c call) (a answer, reached bool, err error) {
	var got atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { got.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, c.method, c.url.String(), bytes.NewReader(c.body))
	if err != nil {
		return answer{}, false, &Error{Class: ClassBadAnswer, Detail: "the URL is not usable"}
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "turnout")
	if c.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.cred.key != "" {
		req.SetBasicAuth(c.cred.key, c.cred.secret)
	}
	res, err := h.client.Do(req)
	if err != nil {
		return answer{}, got.Load(), requestError(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBodyBytes+1))
	switch {
	case err != nil:
		return answer{}, true, requestError(err)
	case len(body) > maxBodyBytes:
		return answer{}, true, &Error{Class: ClassBadAnswer, Detail: "the answer is over 1 MiB"}
	}
	return answer{status: res.StatusCode, body: body}, true, nil
}

// requestError replaces an error of the HTTP client by one of ours, because its text names addresses and hosts.
func requestError(err error) error {
	var ours *Error
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &ours):
		return ours
	case errors.Is(err, context.Canceled):
		return &Error{Class: ClassUnreachable, Detail: "cancelled", cause: context.Canceled}
	case errors.As(err, &timeout) && timeout.Timeout():
		return &Error{Class: ClassUnreachable, Detail: "no whole answer in time"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &Error{Class: ClassBadAnswer, Detail: "the answer is cut short"}
	}
	return &Error{Class: ClassUnreachable, Detail: "the connection failed"}
}

// statusError gives the class of a status that is not a success, nil for 2xx.
func statusError(status int) error {
	switch {
	case status >= 200 && status < 300:
		return nil
	case status == http.StatusUnauthorized:
		return &Error{Class: ClassUnauthorized, Detail: "the credential is not accepted (401)"}
	case status == http.StatusForbidden:
		return &Error{Class: ClassUnauthorized, Detail: "the credential is not allowed to do this (403)"}
	case status >= 500:
		return &Error{Class: ClassServerError, Detail: "the server has an error (5xx)"}
	case status >= 300 && status < 400:
		return &Error{Class: ClassBadAnswer, Detail: "a redirect, which is not followed (3xx)"}
	case status == http.StatusNotFound:
		return &Error{Class: ClassBadAnswer, Detail: "no such path, is the URL right? (404)"}
	}
	return &Error{Class: ClassBadAnswer, Detail: "an unexpected status"}
}
