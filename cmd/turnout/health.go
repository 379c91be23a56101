package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) healthCommand() *cobra.Command {
	var ready bool
	c := &cobra.Command{
		Use: "health", Short: "Say by the exit code whether a gateway answers; for container health checks", Args: cobra.NoArgs,
		Long: "Say by the exit code whether a gateway answers, or with --ready whether it is ready for devices. Needs no token.",
	}
	c.Flags().BoolVar(&ready, "ready", false, "ask whether the gateway is ready, not only whether it answers")
	a.connectionFlags(c)
	a.outputFlag(c)
	c.RunE = a.verb(func(ctx context.Context, _ []string) error {
		cl, err := a.connect(false)
		if err != nil {
			return err
		}
		defer cl.Close()
		if !ready {
			if err := cl.Health(ctx); err != nil {
				return err
			}
			if a.output == outputJSON {
				return a.printJSON(map[string]string{"status": "ok"})
			}
			_, err = fmt.Fprintln(a.stdout, "healthy")
			return err
		}
		r, err := cl.Ready(ctx)
		if err != nil {
			return err
		}
		if a.output == outputJSON {
			if err := a.printJSON(r); err != nil {
				return err
			}
		}
		if !r.Ready {
			return errors.New("not ready: " + strings.Join(r.Reasons, "; "))
		}
		if a.output == outputTable {
			_, err = fmt.Fprintln(a.stdout, "ready")
		}
		return err
	})
	return c
}
