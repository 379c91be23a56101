package peer

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	"turnout/fsm"
)

// The calls between gateways: POST over HTTP/1.1 on a connection of purpose RPC, bodies in CBOR. A refusal is a status other
// than 200 with an rpcError.
const (
	pathStatus  = "/v1/status"
	pathPropose = "/v1/propose"
	pathWait    = "/v1/wait"
	pathJoin    = "/v1/join"
	pathPrepare = "/v1/bootstrap/prepare"
	pathCommit  = "/v1/bootstrap/commit"
)

// headerForwarded marks a call that another gateway passed on. It is never passed on again.
const headerForwarded = "Turnout-Forwarded"

// Bounds of a body.
const (
	maxProposeBody = fsm.MaxCommandBytes + 1024
	maxOtherBody   = 64 << 10
	maxReplyBody   = 1 << 20
)

// proposeRequest carries an entry to the leader.
type proposeRequest struct {
	Entry []byte        `cbor:"1,keyasint"`
	Wait  time.Duration `cbor:"2,keyasint"` // how long the sender will wait
}

type proposeReply struct {
	Result []byte `cbor:"1,keyasint"` // fsm.MarshalResult
}

// waitRequest asks to be answered when the tables have reached the index.
type waitRequest struct {
	Index uint64        `cbor:"1,keyasint"`
	Wait  time.Duration `cbor:"2,keyasint"`
}

type waitReply struct {
	Index uint64 `cbor:"1,keyasint"`
}

// statusReply is what a gateway tells another one about itself.
type statusReply struct {
	ID            fsm.GatewayID `cbor:"1,keyasint"`
	Name          string        `cbor:"2,keyasint"`
	ClusterID     string        `cbor:"3,keyasint,omitempty"`
	Expect        int           `cbor:"4,keyasint"`
	Voters        int           `cbor:"5,keyasint"` // in the configuration it knows
	Applied       uint64        `cbor:"6,keyasint"` // Raft's applied index
	LastLog       uint64        `cbor:"7,keyasint"`
	Leader        fsm.GatewayID `cbor:"8,keyasint,omitempty"`
	TableIndex    uint64        `cbor:"9,keyasint"`
	Complete      bool          `cbor:"10,keyasint"` // it leads, and its tables at TableIndex hold everything that was acknowledged before it was asked
	GossipAddress string        `cbor:"11,keyasint,omitempty"`
}

// rpcError is a refusal of a call. Code decides what the caller does, Message is for people.
type rpcError struct {
	Code    fsm.Code `cbor:"1,keyasint"`
	Message string   `cbor:"2,keyasint"`
}

func (e *rpcError) Error() string { return string(e.Code) + ": " + e.Message }

// notSentError says that the other gateway cannot have seen the call.
type notSentError struct{ err error }

func (e *notSentError) Error() string { return e.err.Error() }
func (e *notSentError) Unwrap() error { return e.err }

// rpcClient makes calls. Its connections are pooled by target, id included, and by the cluster that this gateway introduced itself
// with: one that was made before it became a member does not serve a member's calls.
type rpcClient struct {
	http    *http.Client
	cluster func() string
}

func newRPCClient(d *dialer) *rpcClient {
	return &rpcClient{cluster: d.cluster, http: &http.Client{
		Transport: &http.Transport{
			Proxy: nil, // gateways are never asked for through a proxy
			DialContext: func(ctx context.Context, _, host string) (net.Conn, error) {
				to, err := targetOfHost(host)
				if err != nil {
					return nil, &dialError{err}
				}
				return d.dial(ctx, to, purposeRPC)
			},
			DisableCompression:     true,
			MaxIdleConnsPerHost:    8,
			MaxConnsPerHost:        64,
			IdleConnTimeout:        60 * time.Second,
			MaxResponseHeaderBytes: 8 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// hostOf writes what a connection is pooled by as a host name, the only thing that net/http pools by.
func (c *rpcClient) hostOf(t target) string {
	return hex.EncodeToString([]byte(c.cluster() + "/" + t.String()))
}

func targetOfHost(hostport string) (target, error) {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return target{}, fmt.Errorf("parse host: %w", err)
	}
	b, err := hex.DecodeString(host)
	if err != nil {
		return target{}, fmt.Errorf("parse host: %w", err)
	}
	_, to, _ := strings.Cut(string(b), "/")
	return parseTarget(to)
}

// call makes one call. Errors are *notSentError when nothing can have reached the other gateway, *rpcError when it answered with a
// refusal, and anything else when the outcome is not known.
func (c *rpcClient) call(ctx context.Context, to target, path string, req, reply any) error {
	return c.do(ctx, to, path, false, req, reply)
}

// forward is call for what came from another gateway.
func (c *rpcClient) forward(ctx context.Context, to target, path string, req, reply any) error {
	return c.do(ctx, to, path, true, req, reply)
}

func (c *rpcClient) do(ctx context.Context, to target, path string, forwarded bool, req, reply any) error {
	body, err := wireEncoding.Marshal(req)
	if err != nil {
		return &notSentError{fmt.Errorf("encode call: %w", err)}
	}
	// Once a connection was got, bytes may have left; before, none can have.
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.hostOf(to)+path, bytes.NewReader(body))
	if err != nil {
		return &notSentError{fmt.Errorf("make call: %w", err)}
	}
	r.Host = "peer"
	r.Header.Set("Content-Type", "application/cbor")
	if forwarded {
		r.Header.Set(headerForwarded, "1")
	}
	resp, err := c.http.Do(r)
	if err != nil {
		err = fmt.Errorf("call %s: %w", path, err)
		if !connected.Load() {
			return &notSentError{err}
		}
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReplyBody+1))
	switch {
	case err != nil:
		return fmt.Errorf("read reply: %w", err)
	case len(b) > maxReplyBody:
		return errors.New("read reply: too long")
	case resp.StatusCode != http.StatusOK:
		var refused rpcError
		if err := wireDecoding.Unmarshal(b, &refused); err != nil || refused.Code == "" {
			return fmt.Errorf("call %s: status %d", path, resp.StatusCode)
		}
		return &refused
	}
	if err := wireDecoding.Unmarshal(b, reply); err != nil {
		return fmt.Errorf("decode reply: %w", err)
	}
	return nil
}

// close drops the idle connections.
func (c *rpcClient) close() { c.http.CloseIdleConnections() }
