package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Options make a Client.
type Options struct {
	URL     string        // base URL of one gateway's admin API, such as "https://gw-1:8080"
	Token   string        // bearer token, empty for none
	TLS     *tls.Config   // nil for the system's roots
	Timeout time.Duration // of one request, streams excepted; 0 means 30 s
}

// Client talks to the admin API of one gateway. It is safe for concurrent use.
type Client struct {
	base    *url.URL
	token   string
	timeout time.Duration
	http    *http.Client
}

// Bounds on answers: a gateway is trusted, whoever answers in its place is not.
const (
	maxAnswerBytes  = 32 << 20
	maxProblemBytes = 256 << 10
)

// New checks the options and returns a client. It does not connect.
func New(o Options) (*Client, error) {
	base, err := url.Parse(o.URL)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, errors.New("client url: must be http://host:port or https://host:port")
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, errors.New("client url: must not carry user info, query or fragment")
	}
	if strings.ContainsAny(o.Token, "\r\n\x00") {
		return nil, errors.New("client token: must be one line of text")
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSClientConfig:       o.TLS,
		TLSHandshakeTimeout:   10 * time.Second,
		IdleConnTimeout:       60 * time.Second,
		ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost:   4,
		DisableCompression:    true,
	}
	return &Client{
		base: base, token: o.Token, timeout: o.Timeout,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Close drops idle connections. The client may be used afterwards.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// WriteOptions go with a write. The zero value writes whatever the stored version is and returns once the asked gateway has applied it.
type WriteOptions struct {
	IfMatch     uint64        // version that the record must have, 0 for any
	IfNoneMatch bool          // the record must not exist
	WaitAll     bool          // wait until every gateway has applied the write
	WaitTimeout time.Duration // bound of that wait, 0 for the gateway's default of 10 s
}

func (w WriteOptions) query() url.Values {
	q := url.Values{}
	if w.WaitAll {
		q.Set("wait", "all")
		if w.WaitTimeout > 0 {
			q.Set("wait_timeout", w.WaitTimeout.String())
		}
	}
	return q
}

func (w WriteOptions) header() http.Header {
	h := http.Header{}
	if w.IfMatch > 0 {
		h.Set("If-Match", strconv.Quote(strconv.FormatUint(w.IfMatch, 10)))
	}
	if w.IfNoneMatch {
		h.Set("If-None-Match", "*")
	}
	return h
}

// escape percent-encodes a path segment byte for byte. All but letters, digits, '-' and '_' is encoded, dots too, so that
// no proxy on the way takes "a/.." for something to tidy.
func escape(segment string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(segment) {
		switch ch := segment[i]; {
		case 'a' <= ch && ch <= 'z', 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9', ch == '-', ch == '_':
			b.WriteByte(ch)
		default:
			b.WriteByte('%')
			b.WriteByte(hexDigits[ch>>4])
			b.WriteByte(hexDigits[ch&15])
		}
	}
	return b.String()
}

// request is one call. Segments are unescaped; the first is the fixed part of the path, such as "v1/devices".
type request struct {
	method   string
	path     string
	segments []string
	query    url.Values
	header   http.Header
	body     any       // sent as JSON
	stream   io.Reader // sent as NDJSON instead
}

func (c *Client) newRequest(ctx context.Context, r request) (*http.Request, error) {
	u := *c.base
	u.Path = strings.TrimSuffix(c.base.Path, "/") + r.path
	u.RawPath = strings.TrimSuffix(c.base.EscapedPath(), "/") + r.path
	for _, s := range r.segments {
		u.Path += "/" + s
		u.RawPath += "/" + escape(s)
	}
	u.RawQuery = r.query.Encode()
	body := r.stream
	if r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, "http://placeholder", body)
	if err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	req.URL, req.Host = &u, u.Host
	for k, v := range r.header {
		req.Header[k] = v
	}
	req.Header.Set("Accept", "application/json, application/problem+json, application/x-ndjson")
	switch {
	case r.stream != nil:
		req.Header.Set("Content-Type", "application/x-ndjson")
		// A refusal for want of a token then comes before the stream is spent.
		req.Header.Set("Expect", "100-continue")
	case r.body != nil:
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	return req, nil
}

// send returns an answer in 2xx with its body open; the caller closes it. Everything else is an error.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	req, err := c.newRequest(ctx, r)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("send request: %w", err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, readProblem(resp)
}

// do sends a request and decodes the JSON answer into out, which may be nil. extra is added to the client's timeout.
func (c *Client) do(ctx context.Context, r request, extra time.Duration, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout+extra)
	defer cancel()
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decodeAnswer(resp, out)
}

func decodeAnswer(resp *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return fmt.Errorf("read answer: %w", err)
	case len(b) > maxAnswerBytes:
		return fmt.Errorf("read answer: more than %d bytes", maxAnswerBytes)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

// readProblem makes an error of an answer outside 2xx, whoever wrote it.
func readProblem(resp *http.Response) error {
	p := &Problem{}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxProblemBytes))
	if media != "application/problem+json" || err != nil || json.Unmarshal(b, p) != nil {
		p = &Problem{Title: http.StatusText(resp.StatusCode), Detail: "the answer is not a problem document; is this a Turnout admin API?"}
	}
	p.Status = resp.StatusCode
	if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil {
		p.RetryAfter = time.Duration(s) * time.Second
	}
	return p
}

// write sends a change and returns its result.
func (c *Client) write(ctx context.Context, method, path string, segments []string, body any, w WriteOptions) (WriteResult, error) {
	var res WriteResult
	err := c.do(ctx, request{method: method, path: path, segments: segments, query: w.query(), header: w.header(), body: body}, w.wait(), &res)
	return res, err
}

func (w WriteOptions) wait() time.Duration {
	switch {
	case !w.WaitAll:
		return 0
	case w.WaitTimeout > 0:
		return w.WaitTimeout
	}
	return 10 * time.Second
}

func (c *Client) get(ctx context.Context, path string, segments []string, query url.Values, out any) error {
	return c.do(ctx, request{method: http.MethodGet, path: path, segments: segments, query: query}, 0, out)
}
