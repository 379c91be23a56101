// Command turnout is the product: `turnout serve` runs one gateway, every other verb is a client of a gateway's admin API.
//
// There is one file per verb. A client verb builds a request from its flags, sends it through package client and prints the answer: a
// table for people, or with --output json exactly the API's objects. Only serve and config reach into the product, and only through
// package node. Configuration has one way in: the flags of serve become TURNOUT_… assignments laid over the environment, and
// node.Load lays those over the file.
//
// The command refuses to take a secret as a flag: a token is read from the file that --token-file names. Standard output carries
// answers alone; an error is one line on standard error. The exit code is 0 for success, 1 for a refusal or a
// failure and 2 for a command line that says nothing meaningful.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// release is the version of the binary; the linker sets it with -X main.release.
var release = "unknown"

func main() {
	a := &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		environ: os.Environ(),
		release: releaseOf(release),
		signals: notify,
	}
	os.Exit(a.main(context.Background(), os.Args[1:]))
}

// notify begins to deliver the signals that mean something to a gateway; the returned function ends it.
func notify() (<-chan os.Signal, func()) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	return signals, func() { signal.Stop(signals) }
}
