package upstream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
)

// emqxPublish is the body of POST /publish of the EMQX 5 and 6 REST API.
type emqxPublish struct {
	Topic      string         `json:"topic"`
	Payload    string         `json:"payload"`
	Encoding   string         `json:"payload_encoding"`
	QoS        uint8          `json:"qos"`
	Retain     bool           `json:"retain"`
	Properties emqxProperties `json:"properties"`
}

type emqxProperties struct {
	Expiry          uint32            `json:"message_expiry_interval,omitempty"`
	CorrelationData string            `json:"correlation_data,omitempty"`
	User            map[string]string `json:"user_properties,omitempty"`
}

// emqxReply joins the shapes of answers: a message id, a reason code, or an error code of the API.
type emqxReply struct {
	ID         string          `json:"id"`
	Payload    json.RawMessage `json:"payload"`
	ReasonCode int             `json:"reason_code"`
	Code       string          `json:"code"`
	Connected  *bool           `json:"connected"`
}

// publishEMQX hands the message to the broker's publish API. The next URL is tried only while no connection was made: after that
// the broker may have the message, and a second try could deliver it twice.
func (c *Commander) publishEMQX(ctx context.Context, t Target, m message) Result {
	spec := &t.Cluster.Spec
	urls, ref := []string{spec.Channel.URL}, spec.Channel.Credential
	if spec.Channel.URL == "" {
		urls = spec.ManagementURLs
		if ref == "" {
			ref = spec.Credential
		}
	}
	cred, err := readCredential(ref)
	if err != nil {
		return rejected("the channel's credential is not usable: " + err.Error())
	}
	body, err := json.Marshal(emqxBody(m))
	if err != nil {
		return rejected("the message cannot be encoded")
	}
	var failed error
	for _, raw := range urls {
		base, err := emqxBase(raw)
		if err != nil {
			failed = worse(failed, err)
			continue
		}
		a, reached, err := c.http.do(ctx, call{method: http.MethodPost, url: base.JoinPath("publish"), cred: cred, body: body})
		switch {
		case err != nil && reached:
			return Result{Outcome: Unknown, Detail: "no whole answer from the channel in time"}
		case err != nil:
			failed = worse(failed, err)
			continue
		}
		r := emqxOutcome(a)
		if r.Outcome == NoSubscriber && t.Parts.ClientID != "" {
			r = c.emqxPresence(ctx, base, cred, t.Parts.ClientID, r)
		}
		return r
	}
	return unreachable(failed)
}

// unreachable is the result when a channel was never reached.
func unreachable(err error) Result {
	if ClassOf(err) == ClassRefusedAddress {
		return rejected("channel unreachable: upstream.allow does not allow its address")
	}
	return rejected("channel unreachable")
}

func emqxBody(m message) emqxPublish {
	p := emqxPublish{Topic: m.topic, Payload: base64.StdEncoding.EncodeToString(m.payload), Encoding: "base64", QoS: m.qos}
	p.Properties.Expiry = m.expiry
	if m.id != "" {
		p.Properties.CorrelationData = m.id
		p.Properties.User = map[string]string{"command_id": m.id}
	}
	return p
}

// emqxOutcome reads an answer of POST /publish.
func emqxOutcome(a answer) Result {
	var reply emqxReply
	parsed := json.Unmarshal(a.body, &reply) == nil
	switch {
	case a.status == http.StatusOK && parsed && reply.ID != "" && reply.Payload == nil:
		return Result{Outcome: Dispatched, Detail: "the broker had a subscriber"}
	case a.status == http.StatusOK && parsed && reply.ID != "":
		// 5.0.0–5.0.8 echo the message and say 200 whether somebody is subscribed or not.
		return Result{Outcome: Accepted, Detail: "the broker took it; its version does not tell whether anybody is subscribed"}
	case a.status == http.StatusAccepted:
		return Result{Outcome: NoSubscriber, Detail: "nobody is subscribed to the topic"}
	case a.status >= 200 && a.status < 300:
		return Result{Outcome: Unknown, Detail: "the channel's answer is not understood"}
	case a.status == http.StatusUnauthorized || a.status == http.StatusForbidden:
		return Result{Outcome: Rejected, Detail: "channel credentials refused", unsent: true}
	case a.status == http.StatusRequestTimeout || a.status >= 500:
		return Result{Outcome: Unknown, Detail: "the broker could not say whether it was delivered"}
	case a.status >= 300 && a.status < 400:
		return rejected("the channel answers with a redirect, which is not followed")
	case a.status == http.StatusNotFound || a.status == http.StatusMethodNotAllowed:
		return rejected("the channel's URL is not that of a publish API")
	case parsed && reply.ReasonCode == 144:
		return Result{Outcome: Rejected, Detail: "the broker refuses the topic name"}
	case parsed && reply.ReasonCode == 151:
		return Result{Outcome: Rejected, Detail: "the broker refuses it as too large"}
	case parsed && reply.Code != "":
		return Result{Outcome: Rejected, Detail: "the broker refuses the request as malformed"}
	}
	return Result{Outcome: Rejected, Detail: "the broker refuses the message"}
}

// emqxPresence asks whether the device is connected, after nobody was subscribed. Anything but a clear no leaves the result.
func (c *Commander) emqxPresence(ctx context.Context, base *url.URL, cred credential, clientID string, r Result) Result {
	u := *base
	u.RawPath = u.EscapedPath() + "/clients/" + url.PathEscape(clientID)
	u.Path += "/clients/" + clientID
	a, _, err := c.http.do(ctx, call{method: http.MethodGet, url: &u, cred: cred})
	if err != nil {
		return r
	}
	var reply emqxReply
	if json.Unmarshal(a.body, &reply) != nil {
		return r
	}
	// The code tells a missing client from a missing path; it was RESOURCE_NOT_FOUND up to 5.0.15.
	absent := a.status == http.StatusNotFound && (reply.Code == "CLIENTID_NOT_FOUND" || reply.Code == "RESOURCE_NOT_FOUND")
	if absent || a.status == http.StatusOK && reply.Connected != nil && !*reply.Connected {
		return Result{Outcome: Offline, Detail: "the broker says that the device is not connected"}
	}
	return r
}
