package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

// completionLimit bounds what a press of the tab key may take.
const completionLimit = 2 * time.Second

// candidate is one word to complete to, with what the shell may show beside it.
type candidate struct{ name, about string }

// completeCluster completes the argument at position at with the names of the broker clusters. The script itself
// is printed by `turnout completion`, which cobra adds.
func (a *app) completeCluster(at int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) != at {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completions(c.Context(), func(ctx context.Context, cl *client.Client) ([]candidate, error) {
			clusters, err := cl.Clusters(ctx)
			var names []candidate
			for _, c := range clusters {
				names = append(names, candidate{name: c.Name})
			}
			return names, err
		})
	}
}

// completeNode completes CLUSTER NODE.
func (a *app) completeNode(c *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return a.completeCluster(0)(c, args, prefix)
	}
	return a.completions(c.Context(), func(ctx context.Context, cl *client.Client) ([]candidate, error) {
		nodes, err := cl.Nodes(ctx, args[0])
		var names []candidate
		for _, n := range nodes {
			names = append(names, candidate{name: n.Name})
		}
		return names, err
	})
}

// completeGateway completes a gateway's id, with its name beside it.
func (a *app) completeGateway(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completions(c.Context(), func(ctx context.Context, cl *client.Client) ([]candidate, error) {
		gateways, err := cl.Gateways(ctx)
		var ids []candidate
		for _, g := range gateways {
			ids = append(ids, candidate{g.ID, cell(g.Name)})
		}
		return ids, err
	})
}

// completions asks the gateway. Whatever goes wrong, there is nothing to complete. A name that does not print is left out.
func (a *app) completions(ctx context.Context, ask func(context.Context, *client.Client) ([]candidate, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(ctx, completionLimit)
	defer cancel()
	cl, err := a.connect(true)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer cl.Close()
	names, err := ask(ctx, cl)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []cobra.Completion
	for _, n := range names {
		if printable(n.name) {
			out = append(out, cobra.CompletionWithDesc(n.name, n.about))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
