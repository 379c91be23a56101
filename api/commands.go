package api

import (
	"context"
	"encoding/base64"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"turnout/api/client"
	"turnout/fsm"
)

func (a *API) registerCommands() {
	register(a, RoleRead, get("explain-route", "/v1/devices/{key}/route", "Explain where a device would be routed now, optionally for a synthetic CONNECT"), a.explainRoute)
	send := op("send-command", http.MethodPost, "/v1/devices/{key}/commands", "Send a command to a device through its home cluster and tell what happened to it")
	send.MaxBodyBytes = maxCommandBody
	register(a, RoleOperate, send, a.sendCommand)
}

type explainInput struct {
	DevicePath
	ClientID string `query:"client_id" maxLength:"65535" doc:"Client identifier of a synthetic CONNECT; may be empty"`
	Username string `query:"username" maxLength:"65535" doc:"User name of a synthetic CONNECT; may be empty"`

	hasClientID, hasUsername bool
}

// Resolve implements huma.Resolver: an empty client identifier is one, a missing one is none.
func (in *explainInput) Resolve(ctx huma.Context) []error {
	r, _ := humachi.Unwrap(ctx)
	q := r.URL.Query()
	in.hasClientID, in.hasUsername = q.Has("client_id"), q.Has("username")
	return nil
}

func (a *API) explainRoute(_ context.Context, in *explainInput) (*answer[client.Explanation], error) {
	key, p := in.key()
	if p != nil {
		return nil, p
	}
	req := ExplainRequest{Key: key}
	if in.hasClientID {
		req.ClientID = &in.ClientID
	}
	if in.hasUsername {
		req.Username = &in.Username
	}
	ex := a.router.Explain(req)
	out := client.Explanation{
		Key: in.Key, DerivedKey: (*string)(ex.DerivedKey), Verdict: "route", Reason: ex.Reason, Detail: ex.Detail, Cluster: string(ex.Cluster),
		Nodes: make([]client.ExplainNode, len(ex.Nodes)), Recorded: ex.Recorded, WouldBind: ex.WouldBind, Index: ex.Index,
	}
	if ex.Refused {
		out.Verdict = "refuse"
	}
	for i, n := range ex.Nodes {
		out.Nodes[i] = client.ExplainNode{
			Name: string(n.Node.Name), Address: n.Node.Address, State: n.Node.State.String(), Draining: n.Node.Draining, Reason: n.Reason,
		}
	}
	return list(ex.Index, out), nil
}

type commandInput struct {
	DevicePath
	Body client.Command
}

// commandTimeout bounds one command to a device.
const commandTimeout = 20 * time.Second

func (a *API) sendCommand(ctx context.Context, in *commandInput) (*answer[client.CommandResult], error) {
	key, p := in.key()
	if p != nil {
		return nil, p
	}
	index := a.tables.Index()
	to, p := a.target(key)
	if p != nil {
		return nil, p
	}
	cmd, p := commandFrom(&in.Body, &to.Cluster.Spec.Channel)
	if p != nil {
		return nil, p
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	res := a.commander.Send(ctx, to, cmd)
	infoFrom(ctx).outcome = res.Outcome
	return list(index, client.CommandResult{
		ID: cmd.ID, Outcome: res.Outcome, Detail: res.Detail, Cluster: string(to.Cluster.Name), Node: string(res.Node),
	}), nil
}

// target finds the home of a device: by its record or, as for its CONNECT, by the policy for devices without one.
func (a *API) target(key fsm.DeviceKey) (Target, *problem) {
	d, _ := a.tables.Device(key)
	topo := a.tables.Topology()
	c := topo.ClusterByID(d.Cluster)
	if c == nil {
		c = topo.Cluster(a.router.Explain(ExplainRequest{Key: key}).Cluster)
	}
	if c == nil {
		return Target{}, refusal(fsm.NewError(fsm.CodeNotFound, "key", "the device has no cluster, so there is no channel to it"), false)
	}
	to := Target{Key: key, Cluster: c}
	for _, id := range []fsm.NodeID{d.Pin, d.Binding} {
		if n, ok := c.Node(id); ok {
			to.Node = n
			break
		}
	}
	return to, nil
}

// commandFrom settles what the caller left out by the channel's spec.
func commandFrom(in *client.Command, channel *fsm.ChannelSpec) (Command, *problem) {
	cmd := Command{ID: in.ID, QoS: channel.QoS, Expiry: time.Duration(channel.ExpirySeconds) * time.Second}
	if cmd.ID == "" {
		cmd.ID = newID()
	}
	field := "body.payload"
	switch {
	case (in.Payload == nil) == (in.PayloadBase64 == nil):
		return cmd, unprocessable("body", "needs exactly one of payload and payload_base64")
	case in.Payload != nil:
		cmd.Payload = []byte(*in.Payload)
	default:
		field = "body.payload_base64"
		var err error
		if cmd.Payload, err = base64.StdEncoding.Strict().DecodeString(*in.PayloadBase64); err != nil {
			return cmd, unprocessable(field, "must be standard base64 with padding")
		}
	}
	if int64(len(cmd.Payload)) > int64(channel.MaxBytes) {
		return cmd, tooLarge(field, int64(channel.MaxBytes))
	}
	if in.QoS != nil {
		if *in.QoS > 1 {
			return cmd, unprocessable("body.qos", "must be 0 or 1")
		}
		cmd.QoS = *in.QoS
	}
	if in.ExpirySeconds != nil {
		cmd.Expiry = time.Duration(*in.ExpirySeconds) * time.Second
	}
	return cmd, nil
}
