package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-metrics"
	metricsprom "github.com/hashicorp/go-metrics/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"turnout/node"
)

// closeLimit bounds a graceful stop. It is below the 30 s that orchestrators usually leave before they kill.
const closeLimit = 25 * time.Second

// killLimit is when a stop that does not come to its end is given up.
const killLimit = closeLimit + 3*time.Second

// errForced is the end of a process that was told twice to stop.
var errForced = errors.New("stopped at once by a second signal; sessions were cut")

func (a *app) serveCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run a gateway",
		Long: `Run a gateway until SIGTERM or SIGINT; a second one ends it at once. SIGHUP reloads what can change.

A flag beats the environment, the environment beats the file. Every key of the file is also a variable: peer.expect is
TURNOUT_PEER__EXPECT. TURNOUT_CONFIG names the file when --config does not.`,
		Args: cobra.NoArgs,
	}
	load := a.configFlags(c)
	c.RunE = a.verb(func(ctx context.Context, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		return a.serve(ctx, cfg)
	})
	return c
}

// keyFlags are the configuration keys common enough to have a flag.
type keyFlags struct {
	file, name, dataDir, api, peer, logLevel string
	join                                     []string
	expect                                   int
}

// configFlags adds the flags of the configuration; load, called once they are parsed, reads file, environment and flags.
func (a *app) configFlags(c *cobra.Command) (load func() (node.Config, error)) {
	k := &keyFlags{}
	f := c.Flags()
	f.StringVar(&k.file, "config", a.getenv("TURNOUT_CONFIG"), "configuration `FILE` (TURNOUT_CONFIG)")
	f.StringVar(&k.name, "name", "", "`NAME` of this gateway, for people (name)")
	f.StringVar(&k.dataDir, "data-dir", "", "`DIRECTORY` for the log, snapshots and the gateway's id (data_dir)")
	f.StringVar(&k.api, "api", "", "`ADDRESS` of the admin API, host:port (api.address)")
	f.StringVar(&k.peer, "peer", "", "`ADDRESS` for the other gateways, host:port (peer.address)")
	f.StringSliceVar(&k.join, "join", nil, "gossip `ADDRESS` of a gateway to join; may be repeated (peer.join)")
	f.IntVar(&k.expect, "expect", 0, "`NUMBER` of gateways that found the cluster together (peer.expect)")
	f.StringVar(&k.logLevel, "log-level", "", "`LEVEL`: debug, info, warn or error (log.level)")
	return func() (node.Config, error) { return node.Load(k.file, overlay(a.environ, k.assignments(f.Changed))) }
}

// assignments returns one TURNOUT_… assignment for every key whose flag was given, which changed reports. Values are written as JSON, which YAML
// reads as it is: "[::1]:8080" stays text and does not become a list.
func (k *keyFlags) assignments(changed func(string) bool) []string {
	var out []string
	set := func(flag, key string, value any) {
		if !changed(flag) {
			return
		}
		text, err := json.Marshal(value)
		if err != nil {
			panic("a string, a list of strings or a number has a JSON form")
		}
		out = append(out, node.EnvPrefix+key+"="+string(text))
	}
	set("name", "NAME", k.name)
	set("data-dir", "DATA_DIR", k.dataDir)
	set("api", "API__ADDRESS", k.api)
	set("peer", "PEER__ADDRESS", k.peer)
	set("join", "PEER__JOIN", k.join)
	set("expect", "PEER__EXPECT", k.expect)
	set("log-level", "LOG__LEVEL", k.logLevel)
	return out
}

// overlay returns environ with the assignments in the place of those of the same variable. Names are compared without case, as
// node.Load reads them.
func overlay(environ, assignments []string) []string {
	out := slices.Clone(environ)
	for _, kv := range assignments {
		name, _, _ := strings.Cut(kv, "=")
		out = slices.DeleteFunc(out, func(have string) bool {
			n, _, _ := strings.Cut(have, "=")
			return strings.EqualFold(n, name)
		})
		out = append(out, kv)
	}
	return out
}

// serve runs a gateway until a signal, the end of ctx or a start that does not succeed. It returns nil after a graceful stop.
func (a *app) serve(ctx context.Context, cfg node.Config) error {
	signals, unnotify := a.signals()
	defer unnotify()
	log := cfg.Log.Logger(a.stderr)
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := attachLibraryMetrics(registry); err != nil {
		return fmt.Errorf("attach metrics: %w", err)
	}
	n, err := node.New(cfg, node.Options{Logger: log, Registerer: registry, Gatherer: registry, Release: a.release})
	if err != nil {
		return err
	}

	openCtx, cancelOpen := context.WithCancel(ctx)
	defer cancelOpen()
	opened := make(chan error, 1)
	go func() { opened <- n.Open(openCtx) }()
	serving := false
	for {
		select {
		case err := <-opened:
			if err != nil {
				return errors.Join(err, closeNode(n, nil, signals))
			}
			serving, opened = true, nil
			fmt.Fprintln(a.stdout, banner(cfg.Name, n.Addresses()))
			continue
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				if serving {
					reload(n, log)
				}
				continue
			}
			log.Info("stopping", "signal", sig.String())
		case <-ctx.Done():
		}
		if !serving {
			cancelOpen()
		}
		return closeNode(n, opened, signals)
	}
}

func reload(n *node.Node, log *slog.Logger) {
	if err := n.Reload(); err != nil {
		log.Error("configuration not reloaded; the old one stays", "error", err)
		return
	}
	log.Info("configuration reloaded")
}

// closer is what has to be stopped.
type closer interface {
	Close(ctx context.Context) error
}

// closeNode stops n: sessions and requests get closeLimit to end. A start that is still under way (opened, nil when there is none) has to give up
// first. A further signal, other than SIGHUP, ends the wait with errForced.
func closeNode(n closer, opened <-chan error, signals <-chan os.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	closed := make(chan error, 1)
	go func() {
		if opened != nil {
			<-opened
		}
		closed <- n.Close(ctx)
	}()
	giveUp := time.NewTimer(killLimit)
	defer giveUp.Stop()
	for {
		select {
		case err := <-closed:
			return err
		case <-giveUp.C:
			return fmt.Errorf("not stopped after %s", killLimit)
		case sig := <-signals:
			if sig != syscall.SIGHUP {
				return errForced
			}
		}
	}
}

// libraryPrefix keeps the libraries' metrics apart from ours: one name with two meanings would spoil the whole of /metrics.
const libraryPrefix = "turnout_library"

// attachLibraryMetrics points the process-global sink of go-metrics, which raft and memberlist write to, at the registry. Nothing expires:
// the number of series is bounded by the number of gateways, and a counter that vanishes between two rare events breaks every rate.
func attachLibraryMetrics(r prometheus.Registerer) error {
	sink, err := metricsprom.NewPrometheusSinkFrom(metricsprom.PrometheusOpts{Registerer: r, Name: libraryPrefix})
	if err != nil {
		return err
	}
	cfg := metrics.DefaultConfig(libraryPrefix)
	cfg.EnableHostname = false
	cfg.EnableRuntimeMetrics = false // the Go collector has them
	_, err = metrics.NewGlobal(cfg, sink)
	return err
}

// banner is the line that says where a gateway answers.
func banner(name string, at node.Addresses) string {
	var b strings.Builder
	fmt.Fprintf(&b, "turnout: %s serves", cell(name))
	for _, l := range slices.Sorted(maps.Keys(at.Listeners)) {
		fmt.Fprintf(&b, " %s=%s", cell(l), at.Listeners[l])
	}
	for _, p := range []struct{ what, address string }{{"api", at.API}, {"peer", at.Peer}, {"gossip", at.Gossip}} {
		if p.address != "" {
			fmt.Fprintf(&b, " %s=%s", p.what, p.address)
		}
	}
	return b.String()
}
