package api

import (
	"context"
	"encoding/base64"
	"net/http"

	"turnout/api/client"
	"turnout/fsm"
)

// DevicePath is the part of a path that names a device.
type DevicePath struct {
	Key string `path:"key" doc:"Device key, percent-encoded byte for byte"`
}

// key returns the device key of the path.
func (p *DevicePath) key() (fsm.DeviceKey, *problem) {
	key := fsm.DeviceKey(p.Key)
	if !key.Valid() {
		return "", unprocessable("path.key", "must be 1 to 256 bytes of UTF-8")
	}
	return key, nil
}

func (a *API) registerDevices() {
	const path = "/v1/devices/{key}"
	register(a, RoleRead, get("list-devices", "/v1/devices", "List devices by prefix, cluster, node and block, page by page"), a.listDevices)
	register(a, RoleRead, get("get-device", path, "Get the record of a device"), a.getDevice)
	register(a, RoleOperate, op("put-device", http.MethodPut, path, "Replace the operator's whole word on a device: what the body leaves out is taken away"), a.putDevice)
	register(a, RoleOperate, op("patch-device", http.MethodPatch, path, "Change parts of a device's record: what the body leaves out stays"), a.patchDevice)
	register(a, RoleOperate, op("delete-device", http.MethodDelete, path, "Delete the record of a device"), a.deleteDevice)
}

// FilterParams choose devices.
type FilterParams struct {
	Prefix  string `query:"prefix" maxLength:"256" doc:"Beginning of the device key"`
	Cluster string `query:"cluster" doc:"Name of the cluster in the record"`
	Node    string `query:"node" doc:"Name of the node that the device is pinned or bound to; needs cluster"`
	Blocked string `query:"blocked" enum:"true,false"`
}

func (a *API) filter(p *FilterParams) (fsm.DeviceFilter, *problem) {
	f := fsm.DeviceFilter{Prefix: fsm.DeviceKey(p.Prefix)}
	if p.Cluster != "" {
		c := a.tables.Topology().Cluster(fsm.ClusterName(p.Cluster))
		if c == nil {
			return f, unprocessable("query.cluster", "no such cluster")
		}
		f.Cluster = c.ID
		if p.Node != "" {
			n, ok := c.NodeByName(fsm.NodeName(p.Node))
			if !ok {
				return f, unprocessable("query.node", "no such node in this cluster")
			}
			f.Node = n.ID
		}
	} else if p.Node != "" {
		return f, unprocessable("query.node", "needs cluster: node names are unique in their cluster only")
	}
	if p.Blocked != "" {
		blocked := p.Blocked == "true"
		f.Blocked = &blocked
	}
	return f, nil
}

type listDevicesInput struct {
	FilterParams
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Most items of one page"`
	Cursor string `query:"cursor" maxLength:"400" doc:"next_cursor of the page before"`
}

func (a *API) listDevices(_ context.Context, in *listDevicesInput) (*answer[client.DevicePage], error) {
	f, p := a.filter(&in.FilterParams)
	if p != nil {
		return nil, p
	}
	after, p := parseCursor(in.Cursor)
	if p != nil {
		return nil, p
	}
	index := a.tables.Index()
	page, next := a.tables.Devices(after, in.Limit, f)
	topo := a.tables.Topology()
	out := client.DevicePage{Items: make([]client.Device, len(page))}
	for i, d := range page {
		out.Items[i] = deviceJSON(topo, d)
	}
	if next != "" {
		out.NextCursor = base64.RawURLEncoding.EncodeToString([]byte(next))
	}
	return list(index, out), nil
}

// parseCursor returns the key behind which a page begins.
func parseCursor(s string) (fsm.DeviceKey, *problem) {
	if s == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if key := fsm.DeviceKey(b); err == nil && key.Valid() {
		return key, nil
	}
	return "", unprocessable("query.cursor", "is not the next_cursor of a page")
}

func (a *API) getDevice(_ context.Context, in *DevicePath) (*answer[client.Device], error) {
	key, p := in.key()
	if p != nil {
		return nil, p
	}
	index := a.tables.Index()
	d, ok := a.tables.Device(key)
	if !ok {
		return nil, refusal(fsm.NewError(fsm.CodeNotFound, "key", "no such device"), false)
	}
	return record(index, d.Version, deviceJSON(a.tables.Topology(), d)), nil
}

type putDeviceInput struct {
	DevicePath
	CreateParams
	WriteParams
	Body client.DevicePut
}

func (a *API) putDevice(ctx context.Context, in *putDeviceInput) (*answer[client.WriteResult], error) {
	cluster, pin := fsm.ClusterName(in.Body.Cluster), fsm.NodeName(in.Body.Pin)
	change := fsm.DeviceChange{Cluster: &cluster, Pin: &pin, PinStrict: &in.Body.PinStrict, Blocked: &in.Body.Blocked}
	return a.changeDevice(ctx, &in.DevicePath, &in.CreateParams, in.WriteParams, change)
}

type patchDeviceInput struct {
	DevicePath
	CreateParams
	WriteParams
	Body client.DevicePatch
}

func (a *API) patchDevice(ctx context.Context, in *patchDeviceInput) (*answer[client.WriteResult], error) {
	b := &in.Body
	if b.Cluster == nil && b.Pin == nil && b.PinStrict == nil && b.Blocked == nil {
		return nil, unprocessable("body", "names no field to change")
	}
	return a.changeDevice(ctx, &in.DevicePath, &in.CreateParams, in.WriteParams, fsm.DeviceChange{
		Cluster: (*fsm.ClusterName)(b.Cluster), Pin: (*fsm.NodeName)(b.Pin), PinStrict: b.PinStrict, Blocked: b.Blocked,
	})
}

func (a *API) changeDevice(ctx context.Context, path *DevicePath, cond *CreateParams, wp WriteParams, change fsm.DeviceChange) (*answer[client.WriteResult], error) {
	key, p := path.key()
	if p != nil {
		return nil, p
	}
	want, p := cond.version()
	if p != nil {
		return nil, p
	}
	change.Key, change.IfVersion = key, want
	old, _ := a.tables.Device(key)
	return a.write(ctx, &fsm.PutDevices{Changes: []fsm.DeviceChange{change}}, wp, old.Version, want != nil)
}

type deleteDeviceInput struct {
	DevicePath
	MatchParams
	WriteParams
}

func (a *API) deleteDevice(ctx context.Context, in *deleteDeviceInput) (*answer[client.WriteResult], error) {
	key, p := in.key()
	if p != nil {
		return nil, p
	}
	want, p := in.version()
	if p != nil {
		return nil, p
	}
	old, _ := a.tables.Device(key)
	return a.write(ctx, &fsm.RemoveDevices{Keys: []fsm.DeviceKey{key}, IfVersion: want}, in.WriteParams, old.Version, want != nil)
}

func deviceJSON(topo *fsm.Topology, d fsm.Device) client.Device {
	c := topo.ClusterByID(d.Cluster)
	out := client.Device{
		Key: string(d.Key), Origin: d.Origin.String(), PinStrict: d.PinStrict, Blocked: d.Blocked, Version: d.Version,
		Pin: nodeRef(c, d.Pin), Binding: nodeRef(c, d.Binding),
	}
	if c != nil {
		out.Cluster = string(c.Name)
	}
	return out
}

// nodeRef names a node of a record, nil for none.
func nodeRef(c *fsm.Cluster, id fsm.NodeID) *client.NodeRef {
	if id == 0 {
		return nil
	}
	if c != nil {
		if n, ok := c.Node(id); ok {
			return &client.NodeRef{ID: uint32(id), Name: string(n.Name)}
		}
	}
	return &client.NodeRef{ID: uint32(id), Gone: true}
}
