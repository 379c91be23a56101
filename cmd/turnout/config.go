package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"turnout/node"
)

func (a *app) configCommand() *cobra.Command {
	check := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration file without starting anything",
		Long: `Check a configuration file, with the environment laid over it as serve does. An unknown key is named with its line. Certificates,
tokens and keys that the file names are not opened: serve does that. Without FILE, TURNOUT_CONFIG names it.`,
		Args: cobra.MaximumNArgs(1),
	}
	check.RunE = a.verb(func(_ context.Context, args []string) error {
		file := a.configFile(args)
		if file == "" {
			return usageError("name the file, or set TURNOUT_CONFIG")
		}
		if _, err := node.Load(file, a.environ); err != nil {
			return err
		}
		_, err := fmt.Fprintln(a.stdout, "ok")
		return err
	})
	show := &cobra.Command{
		Use:   "show [FILE]",
		Short: "Print the configuration that serve would run with",
		Long: `Print the configuration that serve would run with: the defaults, the file over them, the environment over both. Secrets stand in
files that the configuration only names. Without FILE, TURNOUT_CONFIG names it; without both, there are the defaults and the environment.`,
		Args: cobra.MaximumNArgs(1),
	}
	show.RunE = a.verb(func(_ context.Context, args []string) error {
		cfg, err := node.Load(a.configFile(args), a.environ)
		if err != nil {
			return err
		}
		e := yaml.NewEncoder(a.stdout)
		e.SetIndent(2)
		if err := e.Encode(cfg); err != nil {
			return fmt.Errorf("print configuration: %w", err)
		}
		return e.Close()
	})
	return group("config", "Check and show the configuration of a gateway", check, show)
}

func (a *app) configFile(args []string) string {
	if len(args) == 1 {
		return args[0]
	}
	return a.getenv("TURNOUT_CONFIG")
}
