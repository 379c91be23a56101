package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// app is everything a verb may touch of the world outside; a test gives its own.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	environ        []string // as os.Environ
	release        string
	signals        func() (<-chan os.Signal, func()) // begins to deliver signals; the function ends it

	conn    connection
	output  string // outputTable or outputJSON
	started bool   // the command line was understood and a verb runs
}

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// usageError is a command line that was parsed but says nothing meaningful.
type usageError string

func (e usageError) Error() string { return string(e) }

// main runs the command line and returns the exit code.
func (a *app) main(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	ran, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	where := ""
	if ran != root {
		where = strings.TrimPrefix(ran.CommandPath(), "turnout ") + ": "
	}
	fmt.Fprintf(a.stderr, "turnout: %s%s\n", where, oneLine(a.describe(err)))
	var usage usageError
	if !a.started || errors.As(err, &usage) {
		return exitUsage
	}
	return exitError
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "turnout",
		Short:         "A self-contained cluster of MQTT gateways",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(
		a.serveCommand(), a.configCommand(), a.tokenCommand(), a.versionCommand(),
		a.clusterCommand(), a.deviceCommand(), a.policyCommand(), a.settingsCommand(), a.gatewayCommand(),
		a.statusCommand(), a.healthCommand(),
	)
	return root
}

// verb makes a function the body of a command. From here on an error is a failure, no longer a misuse.
func (a *app) verb(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		a.started = true
		return f(c.Context(), args)
	}
}

// group makes a command that only holds others; called by itself it is a misuse.
func group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	var names []string
	for _, v := range verbs {
		names = append(names, v.Name())
	}
	g := &cobra.Command{
		Use: use, Short: short,
		RunE: func(*cobra.Command, []string) error {
			return usageError("must be followed by one of: " + strings.Join(names, ", "))
		},
	}
	g.AddCommand(verbs...)
	return g
}

// getenv returns the value of a variable, empty when it is not set.
func (a *app) getenv(name string) string {
	for _, kv := range a.environ {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// choice is a flag that takes one of a few words.
type choice struct {
	value   *string
	allowed []string
}

// choiceFlag adds such a flag; what value holds already is the default.
func choiceFlag(c *cobra.Command, value *string, name, shorthand, usage string, allowed ...string) {
	c.Flags().VarP(choice{value, allowed}, name, shorthand, usage)
	if err := c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic("the flag was added one line above: " + err.Error())
	}
}

// String returns the value.
func (c choice) String() string { return *c.value }

// Set takes one of the words.
func (c choice) Set(s string) error {
	if !slices.Contains(c.allowed, s) {
		return fmt.Errorf("must be %s", strings.Join(c.allowed, " or "))
	}
	*c.value = s
	return nil
}

// Type returns what help shows as the value.
func (c choice) Type() string { return strings.Join(c.allowed, "|") }
