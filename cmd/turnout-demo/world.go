package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"

	"turnout/api/client"
	"turnout/test/harness"
	"turnout/test/harness/fleet"
)

const (
	devicesEach = 12
	apiKey      = "demo"
	apiSecret   = "not-a-secret-outside-this-process"
)

// site is one broker cluster with its management API.
type site struct {
	name    string
	cluster *harness.Cluster
	api     *harness.ManagementAPI
}

// unit is one device of the demo: what it is and its connection.
type unit struct {
	id      string
	site    *site
	version byte
	gateway *fleet.Gateway // that it is connected through
	conn    *harness.Device
	node    string // where it was seen after its first CONNECT
}

// world is everything that runs.
type world struct {
	out        io.Writer
	dir        string
	credential string
	fleet      *fleet.Fleet
	sites      []*site
	units      []*unit
}

func newWorld(out io.Writer, log *slog.Logger) (w *world, err error) {
	dir, err := os.MkdirTemp("", "turnout-demo-")
	if err != nil {
		return nil, err
	}
	w = &world{out: out, dir: dir, credential: filepath.Join(dir, "api-key")}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close(context.Background()))
		}
	}()
	if err := os.WriteFile(w.credential, []byte(apiKey+":"+apiSecret), 0o600); err != nil {
		return w, err
	}
	for _, name := range []string{"west", "east"} {
		s, err := newSite(name)
		if err != nil {
			return w, err
		}
		w.sites = append(w.sites, s)
	}
	for i := range 2 * devicesEach {
		s := w.sites[i%2]
		version := byte(4)
		if i/2%2 == 1 {
			version = 5
		}
		w.units = append(w.units, &unit{id: fmt.Sprintf("%s-meter-%02d", s.name, i/2+1), site: s, version: version})
	}
	w.fleet, err = fleet.New(fleet.Options{Gateways: 3, Dir: dir, Logger: log})
	return w, err
}

func newSite(name string) (*site, error) {
	c, err := harness.NewCluster(harness.ClusterOptions{Name: name, Nodes: 2})
	if err != nil {
		return nil, err
	}
	a, err := harness.NewManagementAPI(harness.ManagementAPIOptions{Cluster: c, Key: apiKey, Secret: apiSecret})
	if err != nil {
		return nil, err
	}
	return &site{name: name, cluster: c, api: a}, errors.Join(c.Start(), a.Start())
}

func (w *world) close(ctx context.Context) error {
	var errs []error
	for _, u := range w.units {
		if u.conn != nil {
			u.conn.Kill()
		}
	}
	if w.fleet != nil {
		errs = append(errs, w.fleet.Close(ctx))
	}
	for _, s := range w.sites {
		errs = append(errs, s.api.Close(), s.cluster.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

// via returns the i-th running gateway, counted round.
func (w *world) via(i int) *fleet.Gateway {
	var running []*fleet.Gateway
	for _, g := range w.fleet.Gateways() {
		if g.Running() {
			running = append(running, g)
		}
	}
	return running[i%len(running)]
}

// operator returns the admin API of a running gateway.
func (w *world) operator() *client.Client { return w.via(0).API() }

// connect connects a device through a gateway, as often as a real device would have to.
func (w *world) connect(ctx context.Context, u *unit, g *fleet.Gateway) error {
	if u.conn != nil {
		u.conn.Disconnect()
		u.conn = nil
	}
	err := harness.Eventually(ctx, u.id+" to connect", func() (bool, string) {
		conn, err := harness.ConnectDevice(ctx, harness.DeviceOptions{
			Address: g.MQTT(), ClientID: u.id, Version: u.version, CleanStart: true, Subscribe: []string{commandTopic(u.id)},
		})
		if err != nil {
			return false, err.Error()
		}
		u.conn = conn
		return true, ""
	})
	u.gateway = g
	return err
}

func commandTopic(id string) string { return "devices/" + id + "/commands" }

// where asks the device's own cluster on which node the device is now.
func (u *unit) where() (string, error) {
	info, ok := u.site.cluster.Client(u.id)
	if !ok || !info.Connected {
		return "", fmt.Errorf("%s has no connected session in cluster %s", u.id, u.site.name)
	}
	return info.Node, nil
}

// strayed reports whether any other cluster ever accepted the device.
func (w *world) strayed(u *unit) bool {
	for _, s := range w.sites {
		if s != u.site && len(s.cluster.SeenOn(u.id)) > 0 {
			return true
		}
	}
	return false
}

// table prints device, cluster, node and gateway, the first two columns as the brokers have them.
func (w *world) table() error {
	t := tabwriter.NewWriter(w.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "   DEVICE\tMQTT\tCLUSTER\tNODE\tGATEWAY")
	for _, u := range w.units {
		node, err := u.where()
		if err != nil {
			return err
		}
		fmt.Fprintf(t, "   %s\t%s\t%s\t%s\t%s\n", u.id, map[byte]string{4: "3.1.1", 5: "5.0"}[u.version], u.site.name, node, u.gateway.Name)
	}
	return t.Flush()
}
