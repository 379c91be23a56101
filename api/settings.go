package api

import (
	"context"
	"net/http"

	"turnout/api/client"
	"turnout/fsm"
)

func (a *API) registerSettings() {
	register(a, RoleRead, get("get-policy", "/v1/policy", "Get the policy for unknown devices"), a.getPolicy)
	register(a, RoleAdmin, op("put-policy", http.MethodPut, "/v1/policy", "Replace the policy for unknown devices"), a.putPolicy)
	register(a, RoleRead, get("get-settings", "/v1/settings", "Get the replicated settings"), a.getSettings)
	register(a, RoleAdmin, op("patch-settings", http.MethodPatch, "/v1/settings", "Change the replicated settings; what the body leaves out stays"), a.patchSettings)
}

func (a *API) getPolicy(context.Context, *struct{}) (*answer[client.Policy], error) {
	index, s := a.tables.Index(), a.tables.Topology().Settings
	return record(index, s.Version, client.Policy{Policy: s.Unknown.Kind, Cluster: string(s.Unknown.Cluster), Version: s.Version}), nil
}

type putPolicyInput struct {
	MatchParams
	WriteParams
	Body client.PolicyPut
}

func (a *API) putPolicy(ctx context.Context, in *putPolicyInput) (*answer[client.WriteResult], error) {
	want, p := in.version()
	if p != nil {
		return nil, p
	}
	cmd := &fsm.PutSettings{Unknown: &fsm.Policy{Kind: in.Body.Policy, Cluster: fsm.ClusterName(in.Body.Cluster)}, IfVersion: want}
	return a.write(ctx, cmd, in.WriteParams, a.tables.Topology().Settings.Version, want != nil)
}

func (a *API) getSettings(context.Context, *struct{}) (*answer[client.Settings], error) {
	index, s := a.tables.Index(), a.tables.Topology().Settings
	return record(index, s.Version, client.Settings{ClusterID: s.ClusterID, Identity: s.Identity, Version: s.Version}), nil
}

type patchSettingsInput struct {
	MatchParams
	WriteParams
	Body client.SettingsPatch
}

func (a *API) patchSettings(ctx context.Context, in *patchSettingsInput) (*answer[client.WriteResult], error) {
	want, p := in.version()
	if p != nil {
		return nil, p
	}
	if in.Body.Identity == nil {
		return nil, unprocessable("body", "names no field to change")
	}
	if a.checkIdentity(*in.Body.Identity) != nil {
		return nil, unprocessable("body.identity", "is not an identity template: {client_id}, {username}, {password_hmac}, with literals in between")
	}
	cmd := &fsm.PutSettings{Identity: in.Body.Identity, Force: in.Body.Force, IfVersion: want}
	return a.write(ctx, cmd, in.WriteParams, a.tables.Topology().Settings.Version, want != nil)
}
