package main

import (
	"strings"
	"testing"

	"turnout/api/client"
)

func ptr[T any](v T) *T { return &v }

// What the fake gateway holds.
var (
	west = client.Cluster{
		Name: "west", Nodes: 2, Devices: 12, Version: 7, NodesVersion: 9,
		Spec: client.ClusterSpec{
			Driver: "emqx", ManagementURLs: []string{"http://10.20.0.1:18083"}, Credential: "file:/run/secrets/west",
			PollSeconds: ptr(uint32(5)), RemoveAfter: ptr(uint32(12)), Port: ptr(uint16(1883)), Weight: ptr(uint32(1)),
			Channel: &client.ChannelSpec{Kind: "emqx", Topic: "devices/{key}/commands", QoS: ptr(uint8(1)), MaxBytes: ptr(uint32(65536))},
		},
	}
	lab = client.Cluster{
		Name: "lab", Nodes: 1, Version: 8, Trouble: "polls fail: unauthorized",
		Spec: client.ClusterSpec{Driver: "static", Addresses: map[string]string{"a": "10.30.0.1:1883"}, Weight: ptr(uint32(0))},
	}
	nodes = client.NodeList{Items: []client.Node{
		{Name: "emqx@10.20.0.1", ID: 3, Address: "10.20.0.1:1883", State: "up", Version: 9},
		{Name: "emqx\x1b[2J\tevil", ID: 4, State: "suspect", Draining: true, Version: 9},
	}}
	meter = client.Device{
		Key: "meter/0001", Cluster: "west", Origin: "assigned", Version: 41,
		Pin: &client.NodeRef{ID: 3, Name: "emqx@10.20.0.1"}, PinStrict: true, Binding: &client.NodeRef{ID: 2, Gone: true},
	}
	hostile = client.Device{Key: "a\x1b]0;pwned\x07\tb <&>", Origin: "none", Blocked: true, Version: 42}
	written = client.WriteResult{Index: 50, Version: 50}
)

func ok(body any) []answer { return []answer{{body: body}} }

func refused(status int, p client.Problem, header ...string) []answer {
	p.Status = status
	a := answer{status: status, body: p, header: map[string]string{}}
	for i := 0; i+1 < len(header); i += 2 {
		a.header[header[i]] = header[i+1]
	}
	return []answer{a}
}

// TestVerbs runs each verb that asks a gateway against one that answers from a list, and compares requests, output and exit code
// with a golden file.
func TestVerbs(t *testing.T) {
	tests := []struct {
		name    string
		args    string // words; none has a space inside, which "␠" stands for
		stdin   string
		answers map[string][]answer
	}{
		{
			"cluster_add",
			"cluster add west --url http://10.20.0.1:18083 --url http://10.20.0.2:18083 --credential env:WEST --node emqx@a=b=10.20.0.1:1883 --port 1884 --weight 0 --channel emqx --topic t/{key} --wait all",
			"", map[string][]answer{"PUT /v1/clusters/west": ok(client.WriteResult{Index: 50, Version: 50, Lagging: []string{"gw-3"}})},
		},
		{
			"cluster_add_static", "cluster add lab --node a=10.30.0.1:1883 --channel mqtt --channel-url mqtt://10.30.0.9:1883 --channel-credential file:/run/lab -o json",
			"", map[string][]answer{"PUT /v1/clusters/lab": ok(written)},
		},
		{
			"cluster_add_refused", "cluster add west --url ftp://x", "",
			map[string][]answer{"PUT /v1/clusters/west": refused(422, client.Problem{Code: client.CodeInvalid, Detail: "the request is not acceptable", Errors: []client.FieldError{
				{Location: "body.management_urls[0]", Message: "must begin with http:// or https://"},
				{Location: "body.driver", Message: "has a\nsecond line and \x1b[31m"},
			}})},
		},
		{"cluster_add_exists", "cluster add west --url http://x", "", map[string][]answer{
			"PUT /v1/clusters/west": refused(412, client.Problem{Code: client.CodeConflict, Detail: "there is a cluster of this name"}),
		}},
		{"cluster_add_no_leader", "cluster add west --url http://x", "", map[string][]answer{
			"PUT /v1/clusters/west": refused(503, client.Problem{Code: client.CodeNoLeader, Detail: "no leader"}, "Retry-After", "2"),
		}},
		{"cluster_set", "cluster set west --node emqx@c=10.20.0.3:1883 --weight 0 --topic to/{key} --wait all", "", map[string][]answer{
			"GET /v1/clusters/west": ok(west), "PUT /v1/clusters/west": ok(written),
		}},
		{"cluster_set_remove_node", "cluster set lab --remove-node a --node b=10.30.0.2:1883", "", map[string][]answer{
			"GET /v1/clusters/lab": ok(lab), "PUT /v1/clusters/lab": ok(written),
		}},
		{"cluster_set_no_such_node", "cluster set lab --remove-node z", "", map[string][]answer{"GET /v1/clusters/lab": ok(lab)}},
		{"cluster_set_no_channel", "cluster set lab --topic to/{key}", "", map[string][]answer{"GET /v1/clusters/lab": ok(lab)}},
		{"cluster_set_overtaken", "cluster set lab --weight 3", "", map[string][]answer{
			"GET /v1/clusters/lab": ok(lab), "PUT /v1/clusters/lab": refused(412, client.Problem{Code: client.CodeConflict, Detail: "version: is not the stored version"}),
		}},
		{"cluster_list", "cluster list", "", map[string][]answer{"GET /v1/clusters": ok(client.ClusterList{Items: []client.Cluster{lab, west}})}},
		{"cluster_list_empty", "cluster list", "", map[string][]answer{"GET /v1/clusters": ok(client.ClusterList{})}},
		{"cluster_list_json", "cluster list -o json", "", map[string][]answer{"GET /v1/clusters": ok(client.ClusterList{Items: []client.Cluster{lab}})}},
		{"cluster_show_trouble", "cluster show lab", "", map[string][]answer{"GET /v1/clusters/lab": ok(lab), "GET /v1/clusters/lab/nodes": ok(client.NodeList{})}},
		{"cluster_show", "cluster show west", "", map[string][]answer{"GET /v1/clusters/west": ok(west), "GET /v1/clusters/west/nodes": ok(nodes)}},
		{"cluster_show_json", "cluster show west --output json", "", map[string][]answer{"GET /v1/clusters/west": ok(west)}},
		{"cluster_show_missing", "cluster show east", "", map[string][]answer{
			"GET /v1/clusters/east": refused(404, client.Problem{Code: client.CodeNotFound, Detail: "there is no such cluster"}),
		}},
		{"cluster_remove", "cluster remove lab", "", map[string][]answer{"DELETE /v1/clusters/lab": ok(client.WriteResult{Index: 51})}},
		{"cluster_remove_in_use", "cluster remove west", "", map[string][]answer{
			"DELETE /v1/clusters/west": refused(409, client.Problem{Code: client.CodeInUse, Detail: "12 devices refer to it"}),
		}},
		{"node_list", "cluster node list west", "", map[string][]answer{"GET /v1/clusters/west/nodes": ok(nodes)}},
		{"node_list_json", "cluster node list west -o json", "", map[string][]answer{"GET /v1/clusters/west/nodes": ok(nodes)}},
		{"node_drain", "cluster node drain west emqx@10.20.0.1 --wait all", "", map[string][]answer{
			"PATCH /v1/clusters/west/nodes/emqx%4010%2E20%2E0%2E1": ok(written),
		}},
		{"node_undrain", "cluster node undrain west n1", "", map[string][]answer{"PATCH /v1/clusters/west/nodes/n1": ok(written)}},
		{"node_remove", "cluster node remove west n1", "", map[string][]answer{"DELETE /v1/clusters/west/nodes/n1": ok(client.WriteResult{Index: 52})}},

		{"device_assign", "device assign ../a/%2e␠b west", "", map[string][]answer{"PATCH /v1/devices/%2E%2E%2Fa%2F%252e%20b": ok(written)}},
		{"device_assign_pin", "device assign d west --pin n1 --strict --wait all", "", map[string][]answer{"PATCH /v1/devices/d": ok(written)}},
		{"device_assign_unknown", "device assign d west", "", map[string][]answer{
			"PATCH /v1/devices/d": refused(504, client.Problem{Code: client.CodeUnknown, Detail: "the write may or may not have been applied"}),
		}},
		{"device_block", "device block d", "", map[string][]answer{"PATCH /v1/devices/d": ok(written)}},
		{"device_unblock", "device unblock d", "", map[string][]answer{"PATCH /v1/devices/d": ok(written)}},
		{"device_get", "device get meter/0001", "", map[string][]answer{"GET /v1/devices/meter%2F0001": ok(meter)}},
		{"device_get_json", "device get meter/0001 -o json", "", map[string][]answer{"GET /v1/devices/meter%2F0001": ok(meter)}},
		{"device_route", "device route d", "", map[string][]answer{"GET /v1/devices/d/route": ok(client.Explanation{
			Key: "d", Verdict: "route", Reason: "assigned", Cluster: "west", Recorded: true, WouldBind: true, Index: 50,
			Nodes: []client.ExplainNode{
				{Name: "n1", Address: "10.20.0.1:1883", State: "up", Reason: "binding"},
				{Name: "n2", Address: "10.20.0.2:1883", State: "down", Draining: true, Reason: "ring"},
			},
		})}},
		{"device_route_connect", "device route d --client-id c␠1 --username=", "", map[string][]answer{"GET /v1/devices/d/route": ok(client.Explanation{
			Key: "d", DerivedKey: ptr("/c%201"), Verdict: "refuse", Reason: "unknown", Detail: "the policy is refuse", Index: 50,
		})}},
		{"device_route_json", "device route d --client-id= -o json", "", map[string][]answer{"GET /v1/devices/d/route": ok(client.Explanation{
			Key: "d", DerivedKey: ptr(""), Verdict: "refuse", Reason: "unknown", Nodes: []client.ExplainNode{}, Index: 50,
		})}},
		{"device_list", "device list --cluster west --prefix me", "", map[string][]answer{
			"GET /v1/devices": ok(client.DevicePage{Items: []client.Device{hostile, meter}}),
		}},
		{"device_list_limit", "device list --limit 1", "", map[string][]answer{
			"GET /v1/devices": ok(client.DevicePage{Items: []client.Device{meter}, NextCursor: "c1"}),
		}},
		{"device_list_all", "device list --all", "", map[string][]answer{
			"GET /v1/devices": {
				{body: client.DevicePage{Items: []client.Device{meter}, NextCursor: "c1"}}, {body: client.DevicePage{NextCursor: "c2"}},
				{body: client.DevicePage{Items: []client.Device{hostile}}},
			},
		}},
		{"device_list_json", "device list --limit 2 -o json", "", map[string][]answer{
			"GET /v1/devices": {
				{body: client.DevicePage{Items: []client.Device{meter}, NextCursor: "c1"}}, {body: client.DevicePage{Items: []client.Device{hostile}, NextCursor: "c2"}},
			},
		}},
		{"device_list_json_empty", "device list --all -o json", "", map[string][]answer{"GET /v1/devices": ok(client.DevicePage{Items: []client.Device{}})}},
		{"device_list_broken", "device list --all", "", map[string][]answer{
			"GET /v1/devices": {
				{body: client.DevicePage{Items: []client.Device{meter}, NextCursor: "c1"}},
				{status: 503, body: client.Problem{Code: client.CodeOverloaded, Detail: "too many requests at once"}, header: map[string]string{"Retry-After": "1"}},
			},
		}},
		{"device_list_stuck", "device list --all", "", map[string][]answer{"GET /v1/devices": ok(client.DevicePage{NextCursor: "c1"})}},
		{"device_remove", "device remove a b", "", map[string][]answer{"DELETE /v1/devices/a": ok(client.WriteResult{Index: 53}), "DELETE /v1/devices/b": ok(client.WriteResult{Index: 54})}},
		{"device_remove_second", "device remove a b c", "", map[string][]answer{
			"DELETE /v1/devices/a": ok(client.WriteResult{Index: 53}), "DELETE /v1/devices/b": refused(404, client.Problem{Code: client.CodeNotFound, Detail: "there is no such device"}),
		}},
		{"device_import_ndjson", "device import - --wait all", "{\"key\":\"a\",\"cluster\":\"west\"}\n\n{\"key\":\"b\"}\n", map[string][]answer{
			"POST /v1/devices:import": ok(client.ImportResult{Accepted: 2, LastCommittedLine: 3, Index: 60, Lagging: []string{"gw-3"}}),
		}},
		{"device_import_csv", "device import - -o json", "\ufeffcluster,key,blocked,pin,pin_strict\nwest,a,,n1,true\n\nwest,\"b\n2\",true,,\n,\"c,\"\"3\",false,,0\n", map[string][]answer{
			"POST /v1/devices:import": ok(client.ImportResult{Accepted: 3, LastCommittedLine: 6, Index: 60}),
		}},
		{"device_import_csv_broken", "device import -", "key,blocked\na,\nb,perhaps\nc,\n", map[string][]answer{
			"POST /v1/devices:import": ok(client.ImportResult{Accepted: 1, LastCommittedLine: 2, Index: 60}),
		}},
		{"device_import_csv_columns", "device import -", "key,blocked\na,true,more\n", map[string][]answer{
			"POST /v1/devices:import": ok(client.ImportResult{}),
		}},
		{"device_import_csv_header", "device import -", "key,secret\n", nil},
		{"device_import_csv_no_key", "device import -", "cluster,pin\n", nil},
		{"device_import_stopped", "device import -", "{\"key\":\"a\"}\n{\"key\":\"\"}\n", map[string][]answer{
			"POST /v1/devices:import": refused(422, client.Problem{Code: client.CodeInvalid, Detail: "a line is not acceptable",
				Errors: []client.FieldError{{Location: "body.key", Message: "must be 1 to 256 bytes of UTF-8"}}, Import: &client.ImportResult{Accepted: 1, LastCommittedLine: 1, Line: 2}}),
		}},
		{"device_import_no_file", "device import /nonexistent/devices.csv", "", nil},
		{"device_export", "device export --cluster west --prefix m", "", map[string][]answer{
			"GET /v1/devices:export": {{header: map[string]string{"Content-Type": "application/x-ndjson"}, body: "{\"key\":\"a<\",\"cluster\":\"west\",\"blocked\":false}\n{\"key\":\"b\"}\n"}},
		}},
		{"device_export_broken", "device export", "", map[string][]answer{
			"GET /v1/devices:export": {{header: map[string]string{"Content-Type": "application/x-ndjson"}, body: "{\"key\":\"a\"}\n{\"key\":"}},
		}},
		{"device_command", "device command d --payload hello --qos 0 --expiry 60 --id c-1", "", map[string][]answer{
			"POST /v1/devices/d/commands": ok(client.CommandResult{ID: "c-1", Outcome: "dispatched", Cluster: "west", Node: "n1"}),
		}},
		{"device_command_accepted", "device command d --payload= -o json", "", map[string][]answer{
			"POST /v1/devices/d/commands": ok(client.CommandResult{ID: "made-up", Outcome: "accepted", Cluster: "west"}),
		}},
		{"device_command_bytes", "device command d --payload-file -", "\xff\x00", map[string][]answer{
			"POST /v1/devices/d/commands": ok(client.CommandResult{ID: "x", Outcome: "no_subscriber", Detail: "no matching subscribers", Cluster: "west"}),
		}},
		{"device_command_too_large", "device command d --payload-file -", strings.Repeat("x", maxPayload+1), nil},

		{"policy_show", "policy show", "", map[string][]answer{"GET /v1/policy": ok(client.Policy{Policy: "cluster", Cluster: "west", Version: 5})}},
		{"policy_show_json", "policy show -o json", "", map[string][]answer{"GET /v1/policy": ok(client.Policy{Policy: "refuse", Version: 5})}},
		{"policy_set_cluster", "policy set cluster west --wait all", "", map[string][]answer{"PUT /v1/policy": ok(written)}},
		{"policy_set_weighted", "policy set weighted", "", map[string][]answer{"PUT /v1/policy": ok(written)}},
		{"settings_show", "settings show", "", map[string][]answer{"GET /v1/settings": ok(client.Settings{ClusterID: "c-1", Identity: "{client_id}", Version: 5})}},
		{"settings_show_json", "settings show -o json", "", map[string][]answer{"GET /v1/settings": ok(client.Settings{ClusterID: "c-1", Identity: "{client_id}", Version: 5})}},
		{"settings_set_identity", "settings set-identity {username}/{client_id} --force", "", map[string][]answer{"PATCH /v1/settings": ok(written)}},
		{"gateway_list", "gateway list", "", map[string][]answer{"GET /v1/gateways": ok(gateways)}},
		{"gateway_list_json", "gateway list -o json", "", map[string][]answer{"GET /v1/gateways": ok(gateways)}},
		{"gateway_remove", "gateway remove 1-2", "", map[string][]answer{"DELETE /v1/gateways/1-2": ok(client.WriteResult{Index: 55})}},
		{"status", "status", "", map[string][]answer{"GET /v1/status": ok(status)}},
		{"status_json", "status -o json", "", map[string][]answer{"GET /v1/status": ok(status)}},
		{"status_no_token", "status", "", map[string][]answer{
			"GET /v1/status": refused(401, client.Problem{Code: client.CodeUnauthorized, Detail: "a bearer token is needed"}),
		}},
		{"status_other_server", "status", "", map[string][]answer{"GET /v1/status": {{status: 404, header: map[string]string{"Content-Type": "text/html"}, body: "<html>"}}}},
		{"health", "health", "", map[string][]answer{"GET /healthz": ok("{}")}},
		{"health_json", "health -o json", "", map[string][]answer{"GET /healthz": ok("{}")}},
		{"health_ready", "health --ready", "", map[string][]answer{"GET /readyz": ok(client.Readiness{Ready: true, Reasons: []string{}})}},
		{"health_not_ready", "health --ready", "", map[string][]answer{
			"GET /readyz": {{status: 503, body: client.Readiness{Reasons: []string{"no leader", "tables behind"}}, header: map[string]string{"Content-Type": "application/json"}}},
		}},
		{"health_not_ready_json", "health --ready -o json", "", map[string][]answer{
			"GET /readyz": {{status: 503, body: client.Readiness{Reasons: []string{"no leader"}}, header: map[string]string{"Content-Type": "application/json"}}},
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			g := newGateway(t, tc.answers)
			args := strings.Fields(tc.args)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "␠", " ")
			}
			r := run(t, []string{"TURNOUT_URL=" + g.URL}, tc.stdin, args...)
			golden(t, tc.name, transcript(g, args, r))
		})
	}
}

var gateways = client.GatewayList{Items: []client.Gateway{
	{ID: "1-1", Name: "gw-1", Zone: "a", PeerAddress: "10.0.0.11:7400", APIAddress: "10.0.0.11:8080", Release: "v1", Role: "voter", Leader: true, Liveness: "alive", Self: true, Version: 3},
	{ID: "1-2", Name: "gw-2", PeerAddress: "10.0.0.12:7400", Role: "nonvoter", Liveness: "failed", Version: 4},
}}

var status = client.Status{
	ID: "1-1", Name: "gw-1", Leader: "1-2", State: "follower", Index: 50, Checksum: "00000000deadbeef", Devices: 24, Clusters: 2, Release: "v1",
	Raft: client.RaftStatus{State: "follower", Term: 3, CommitIndex: 51, AppliedIndex: 50, LastContactSeconds: 0.0125, Voters: 3, Nonvoters: 1},
}
