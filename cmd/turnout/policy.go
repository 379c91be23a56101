package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

func (a *app) policyCommand() *cobra.Command {
	return group("policy", "What happens to devices that no record names", a.policyShow(), a.policySet())
}

func (a *app) policyShow() *cobra.Command {
	c := &cobra.Command{Use: "show", Short: "Show the policy for unknown devices", Args: cobra.NoArgs}
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, _ []string) error {
		p, err := cl.Policy(ctx)
		if err != nil {
			return err
		}
		if a.output == outputJSON {
			return a.printJSON(p)
		}
		return a.printFields([]field{{"policy", p.Policy}, {"cluster", p.Cluster}, {"version", number(p.Version)}})
	})
}

func (a *app) policySet() *cobra.Command {
	c := &cobra.Command{
		Use: "set refuse | cluster NAME | weighted", Short: "Set the policy for unknown devices", Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(c *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return []cobra.Completion{"refuse", "cluster", "weighted"}, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeCluster(1)(c, args, prefix)
		},
	}
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		put := client.PolicyPut{Policy: args[0]}
		switch {
		case args[0] != "refuse" && args[0] != "cluster" && args[0] != "weighted":
			return usageError("the policy must be refuse, cluster or weighted")
		case args[0] == "cluster" && len(args) == 1:
			return usageError("policy cluster needs the name of a cluster")
		case args[0] != "cluster" && len(args) == 2:
			return usageError("only policy cluster takes the name of a cluster")
		case len(args) == 2:
			put.Cluster = args[1]
		}
		res, err := cl.PutPolicy(ctx, put, w.options())
		if err != nil {
			return err
		}
		done := fmt.Sprintf("policy for unknown devices is %s", put.Policy)
		if put.Cluster != "" {
			done += " " + cell(put.Cluster)
		}
		return a.printWrite(res, done)
	})
}
