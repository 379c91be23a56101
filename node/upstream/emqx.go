package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"turnout/fsm"
)

// emqxDriver reads GET /nodes of the EMQX 5 and 6 REST API. Any running node answers for the whole cluster, so the
// management URLs are tried in order until one gives a list.
type emqxDriver struct {
	spec fsm.ClusterSpec
	http *httpClient
}

// Members implements Driver. A 401 or 403 ends the round: API keys belong to the cluster, and asking its other nodes with the same
// wrong key only fills their logs.
func (d *emqxDriver) Members(ctx context.Context) ([]Member, error) {
	cred, err := readCredential(d.spec.Credential)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, raw := range d.spec.ManagementURLs {
		base, err := emqxBase(raw)
		if err == nil {
			var members []Member
			if members, err = d.ask(ctx, base, cred); err == nil {
				return members, nil
			}
		}
		failed = worse(failed, err)
		if ClassOf(err) == ClassUnauthorized || ctx.Err() != nil {
			break
		}
	}
	if failed == nil {
		failed = &Error{Class: ClassBadAnswer, Detail: "the cluster has no management URL"}
	}
	return nil, failed
}

func (d *emqxDriver) ask(ctx context.Context, base *url.URL, cred credential) ([]Member, error) {
	a, _, err := d.http.do(ctx, call{method: http.MethodGet, url: base.JoinPath("nodes"), cred: cred})
	if err != nil {
		return nil, err
	}
	if err := statusError(a.status); err != nil {
		return nil, err
	}
	return parseEMQXNodes(a.body, d.spec, base)
}

// emqxBase returns the root of the REST API: the URL itself, or with /api/v5 when it has no path.
func emqxBase(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return nil, &Error{Class: ClassBadAnswer, Detail: "the URL is not usable"}
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	if u.Path == "" {
		u.Path = "/api/v5"
	}
	return u, nil
}

// parseEMQXNodes reads the array of GET /nodes. Keys but "node" are optional and unknown ones ignored, since a stopped
// member carries only its name, status and role. Of entries with the same name the first counts.
func parseEMQXNodes(body []byte, spec fsm.ClusterSpec, base *url.URL) ([]Member, error) {
	bad := func(detail string) ([]Member, error) { return nil, &Error{Class: ClassBadAnswer, Detail: detail} }
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(body, &list); err != nil || list == nil {
		return bad("the answer is not a JSON array of nodes")
	}
	if len(list) > fsm.MaxClusterNodes {
		return bad("the answer lists more nodes than a cluster may have")
	}
	seen := make(map[fsm.NodeName]bool, len(list))
	var out []Member
	usable := false
	for _, entry := range list {
		var name fsm.NodeName
		if json.Unmarshal(entry["node"], &name) != nil || name == "" {
			out = append(out, Member{Problem: "an entry without a node name"})
			continue
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		m := Member{Name: name, State: emqxState(entry)}
		m.Address, m.Problem = nodeAddress(spec, base.Hostname(), name)
		usable = usable || m.Problem == ""
		out = append(out, m)
	}
	if !usable {
		return bad("the answer lists no usable node")
	}
	return out, nil
}

// emqxState normalises a node's status: "running" in any case (5.0.0–5.0.4 write "Running") or true is up, "stopped" or false is
// down. A member that is listed with an error or with a status nobody knows is suspect: gateways then try others first.
func emqxState(entry map[string]json.RawMessage) fsm.NodeState {
	if _, ok := entry["error"]; ok {
		return fsm.NodeSuspect
	}
	switch strings.ToLower(string(bytes.Trim(bytes.TrimSpace(entry["node_status"]), `"`))) {
	case "running", "true":
		return fsm.NodeUp
	case "stopped", "false":
		return fsm.NodeDown
	}
	return fsm.NodeSuspect
}
