package client

import (
	"context"
	"errors"
	"net/http"
)

// Clusters lists the broker clusters.
func (c *Client) Clusters(ctx context.Context) ([]Cluster, error) {
	var out ClusterList
	err := c.get(ctx, "/v1/clusters", nil, nil, &out)
	return out.Items, err
}

// Cluster returns one broker cluster.
func (c *Client) Cluster(ctx context.Context, name string) (Cluster, error) {
	var out Cluster
	err := c.get(ctx, "/v1/clusters", []string{name}, nil, &out)
	return out, err
}

// PutCluster adds a broker cluster or replaces its spec.
func (c *Client) PutCluster(ctx context.Context, name string, spec ClusterSpec, w WriteOptions) (WriteResult, error) {
	return c.write(ctx, http.MethodPut, "/v1/clusters", []string{name}, spec, w)
}

// DeleteCluster removes a cluster that no device and no policy refers to.
func (c *Client) DeleteCluster(ctx context.Context, name string, w WriteOptions) (WriteResult, error) {
	return c.write(ctx, http.MethodDelete, "/v1/clusters", []string{name}, nil, w)
}

// Nodes lists the members of a cluster.
func (c *Client) Nodes(ctx context.Context, cluster string) ([]Node, error) {
	var out NodeList
	err := c.get(ctx, "/v1/clusters", []string{cluster, "nodes"}, nil, &out)
	return out.Items, err
}

// Node returns one member of a cluster.
func (c *Client) Node(ctx context.Context, cluster, node string) (Node, error) {
	var out Node
	err := c.get(ctx, "/v1/clusters", []string{cluster, "nodes", node}, nil, &out)
	return out, err
}

// DrainNode starts or ends the draining of a node.
func (c *Client) DrainNode(ctx context.Context, cluster, node string, draining bool, w WriteOptions) (WriteResult, error) {
	return c.write(ctx, http.MethodPatch, "/v1/clusters", []string{cluster, "nodes", node}, NodePatch{Draining: &draining}, w)
}

// DeleteNode is the operator's word that a node is gone. Discovery adds it again, under a new id, if it still finds it.
func (c *Client) DeleteNode(ctx context.Context, cluster, node string, w WriteOptions) (WriteResult, error) {
	return c.write(ctx, http.MethodDelete, "/v1/clusters", []string{cluster, "nodes", node}, nil, w)
}

// Policy returns the policy for unknown devices.
func (c *Client) Policy(ctx context.Context) (Policy, error) {
	var out Policy
	err := c.get(ctx, "/v1/policy", nil, nil, &out)
	return out, err
}

// PutPolicy replaces the policy for unknown devices.
func (c *Client) PutPolicy(ctx context.Context, p PolicyPut, w WriteOptions) (WriteResult, error) {
	return c.write(ctx, http.MethodPut, "/v1/policy", nil, p, w)
}

// Settings returns the replicated settings.
func (c *Client) Settings(ctx context.Context) (Settings, error) {
	var out Settings
	err := c.get(ctx, "/v1/settings", nil, nil, &out)
	return out, err
}

// PatchSettings changes the replicated settings.
func (c *Client) PatchSettings(ctx context.Context, s SettingsPatch, w WriteOptions) (WriteResult, error) {
	return c.write(ctx, http.MethodPatch, "/v1/settings", nil, s, w)
}

// Gateways returns the roster.
func (c *Client) Gateways(ctx context.Context) ([]Gateway, error) {
	var out GatewayList
	err := c.get(ctx, "/v1/gateways", nil, nil, &out)
	return out.Items, err
}

// DeleteGateway takes a gateway off the roster. One that is still a Raft member is in use.
func (c *Client) DeleteGateway(ctx context.Context, id string, w WriteOptions) (WriteResult, error) {
	return c.write(ctx, http.MethodDelete, "/v1/gateways", []string{id}, nil, w)
}

// Status returns what the gateway says of itself.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var out Status
	err := c.get(ctx, "/v1/status", nil, nil, &out)
	return out, err
}

// Health returns nil when the gateway's process answers.
func (c *Client) Health(ctx context.Context) error { return c.get(ctx, "/healthz", nil, nil, nil) }

// Ready asks whether the gateway is ready. Not ready is an answer, not an error.
func (c *Client) Ready(ctx context.Context) (Readiness, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := c.newRequest(ctx, request{method: http.MethodGet, path: "/readyz"})
	if err != nil {
		return Readiness{}, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return Readiness{}, err
	}
	defer resp.Body.Close()
	var out Readiness
	switch resp.StatusCode {
	case http.StatusOK, http.StatusServiceUnavailable:
		if err := decodeAnswer(resp, &out); err != nil {
			return Readiness{}, err
		}
		if out.Ready != (resp.StatusCode == http.StatusOK) {
			return Readiness{}, errors.New("decode answer: status and body disagree")
		}
		return out, nil
	}
	return Readiness{}, readProblem(resp)
}
