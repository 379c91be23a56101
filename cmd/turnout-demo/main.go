// Command turnout-demo runs a whole Turnout world in one process: three gateways with real Raft, gossip and admin APIs on
// loopback, two broker clusters of two embedded brokers each behind an EMQX-5-shaped management API, and 24 devices with
// Paho clients. It plays operator and devices step by step, checks each step against what the brokers recorded, and then
// stays until Ctrl-C; with --once it exits instead, 0 only if every step was seen to hold.
//
// It refuses to take a gateway's word for where a device is.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	once := flag.Bool("once", false, "exit after the last step instead of waiting for Ctrl-C")
	verbose := flag.Bool("verbose", false, "show the log of the gateways on standard error")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "turnout-demo: takes no arguments")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.DiscardHandler)
	if *verbose {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if err := run(ctx, os.Stdout, log, *once); err != nil {
		fmt.Fprintln(os.Stderr, "turnout-demo:", err)
		os.Exit(1)
	}
}

// stepLimit bounds each step: a step that takes longer has failed.
const stepLimit = 60 * time.Second

func run(ctx context.Context, out io.Writer, log *slog.Logger, once bool) (err error) {
	w, err := newWorld(out, log)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), stepLimit)
		defer cancel()
		if e := w.close(closing); err == nil && e != nil {
			err = fmt.Errorf("close: %w", e)
		}
	}()
	for i, s := range steps {
		fmt.Fprintf(out, "\n%d. %s\n", i+1, s.title)
		bounded, cancel := context.WithTimeout(ctx, stepLimit)
		err := s.run(w, bounded)
		cancel()
		if ctx.Err() != nil {
			return nil // Ctrl-C is no failure of the step it came in
		}
		if err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, s.title, err)
		}
	}
	fmt.Fprintf(out, "\nEvery step was seen to hold.\n")
	if once {
		return nil
	}
	fmt.Fprintf(out, "\nAdmin APIs:\n")
	for _, g := range w.fleet.Gateways() {
		if g.Running() {
			fmt.Fprintf(out, "  %s  %s  (devices: %s)\n", g.Name, g.URL(), g.MQTT())
		}
	}
	fmt.Fprintf(out, "Try:  curl %s/v1/devices\nCtrl-C ends it.\n", w.via(0).URL())
	<-ctx.Done()
	return nil
}
