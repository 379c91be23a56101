package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
)

// DeviceQuery chooses devices for a listing or an export. The zero value chooses all.
type DeviceQuery struct {
	Prefix  string
	Cluster string
	Node    string // pinned or bound to it; needs Cluster
	Blocked *bool
	Limit   int    // of one page, 0 for the gateway's default
	Cursor  string // of the page to begin with
}

func (q DeviceQuery) values() url.Values {
	v := url.Values{}
	for name, s := range map[string]string{"prefix": q.Prefix, "cluster": q.Cluster, "node": q.Node, "cursor": q.Cursor} {
		if s != "" {
			v.Set(name, s)
		}
	}
	if q.Blocked != nil {
		v.Set("blocked", strconv.FormatBool(*q.Blocked))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return v
}

// DevicePage returns one page of devices.
func (c *Client) DevicePage(ctx context.Context, q DeviceQuery) (DevicePage, error) {
	var out DevicePage
	err := c.get(ctx, "/v1/devices", nil, q.values(), &out)
	return out, err
}

// Devices iterates over all devices that match, page by page. It ends after the first error.
func (c *Client) Devices(ctx context.Context, q DeviceQuery) iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		for {
			page, err := c.DevicePage(ctx, q)
			if err != nil {
				yield(Device{}, err)
				return
			}
			for _, d := range page.Items {
				if !yield(d, nil) {
					return
				}
			}
			if page.NextCursor == "" {
				return
			}
			if page.NextCursor == q.Cursor {
				yield(Device{}, errors.New("list devices: the cursor does not move"))
				return
			}
			q.Cursor = page.NextCursor
		}
	}
}

// Device returns the record of one device.
func (c *Client) Device(ctx context.Context, key string) (Device, error) {
	var out Device
	err := c.get(ctx, "/v1/devices", []string{key}, nil, &out)
	return out, err
}

// PutDevice replaces the operator's whole word on a device.
func (c *Client) PutDevice(ctx context.Context, key string, d DevicePut, w WriteOptions) (WriteResult, error) {
	return c.write(ctx, http.MethodPut, "/v1/devices", []string{key}, d, w)
}

// PatchDevice changes parts of a device record.
func (c *Client) PatchDevice(ctx context.Context, key string, d DevicePatch, w WriteOptions) (WriteResult, error) {
	return c.write(ctx, http.MethodPatch, "/v1/devices", []string{key}, d, w)
}

// DeleteDevice deletes the record of a device. The device itself may come back and be placed anew.
func (c *Client) DeleteDevice(ctx context.Context, key string, w WriteOptions) (WriteResult, error) {
	return c.write(ctx, http.MethodDelete, "/v1/devices", []string{key}, nil, w)
}

// Explain asks where a gateway would send the device now, optionally for a synthetic CONNECT.
func (c *Client) Explain(ctx context.Context, key string, q ExplainQuery) (Explanation, error) {
	v := url.Values{}
	if q.ClientID != nil {
		v.Set("client_id", *q.ClientID)
	}
	if q.Username != nil {
		v.Set("username", *q.Username)
	}
	var out Explanation
	err := c.get(ctx, "/v1/devices", []string{key, "route"}, v, &out)
	return out, err
}

// SendCommand sends a command to a device and returns what is known to have happened to it.
func (c *Client) SendCommand(ctx context.Context, key string, cmd Command) (CommandResult, error) {
	var out CommandResult
	err := c.do(ctx, request{method: http.MethodPost, path: "/v1/devices", segments: []string{key, "commands"}, body: cmd}, 0, &out)
	return out, err
}

// ImportDevices streams NDJSON lines (DeviceLine) into the tables. It has no timeout but ctx. When the import stops before its end the error
// is a *Problem whose Import says how far it came; the same is returned as the result.
func (c *Client) ImportDevices(ctx context.Context, lines io.Reader, w WriteOptions) (ImportResult, error) {
	resp, err := c.send(ctx, request{method: http.MethodPost, path: "/v1/devices:import", query: w.query(), stream: lines})
	var p *Problem
	if errors.As(err, &p) && p.Import != nil {
		return *p.Import, err
	}
	if err != nil {
		return ImportResult{}, err
	}
	defer resp.Body.Close()
	var out ImportResult
	return out, decodeAnswer(resp, &out)
}

// maxLineBytes bounds one line of an export; a device line is under 2 KiB.
const maxLineBytes = 64 << 10

// ExportDevices streams all devices that match. It has no timeout but ctx, and it ends after the first error. A stream that the gateway
// broke off ends with an error, never as if it were complete.
func (c *Client) ExportDevices(ctx context.Context, q DeviceQuery) iter.Seq2[DeviceLine, error] {
	return func(yield func(DeviceLine, error) bool) {
		resp, err := c.send(ctx, request{method: http.MethodGet, path: "/v1/devices:export", query: q.values()})
		if err != nil {
			yield(DeviceLine{}, err)
			return
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(make([]byte, 0, 4096), maxLineBytes)
		for lines.Scan() {
			var d DeviceLine
			if err := json.Unmarshal(lines.Bytes(), &d); err != nil {
				yield(DeviceLine{}, fmt.Errorf("decode export: %w", err))
				return
			}
			if !yield(d, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(DeviceLine{}, fmt.Errorf("read export: %w", err))
		}
	}
}
