package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

func (a *app) clusterNodeCommand() *cobra.Command {
	return group("node", "Nodes of a broker cluster",
		a.nodeList(),
		a.nodeWrite("drain", "Give a node no new devices; its devices are bound elsewhere when they connect again", "draining",
			func(ctx context.Context, cl *client.Client, cluster, node string, o client.WriteOptions) (client.WriteResult, error) {
				return cl.DrainNode(ctx, cluster, node, true, o)
			}),
		a.nodeWrite("undrain", "Let a node have new devices again", "in use again",
			func(ctx context.Context, cl *client.Client, cluster, node string, o client.WriteOptions) (client.WriteResult, error) {
				return cl.DrainNode(ctx, cluster, node, false, o)
			}),
		a.nodeWrite("remove", "Say that a node is gone; discovery adds it again if it still finds it", "removed",
			func(ctx context.Context, cl *client.Client, cluster, node string, o client.WriteOptions) (client.WriteResult, error) {
				return cl.DeleteNode(ctx, cluster, node, o)
			}),
	)
}

func (a *app) nodeList() *cobra.Command {
	c := &cobra.Command{
		Use: "list CLUSTER", Short: "List the nodes of a broker cluster", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeCluster(0),
	}
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		nodes, err := cl.Nodes(ctx, args[0])
		if err != nil {
			return err
		}
		if a.output == outputJSON {
			return a.printJSON(client.NodeList{Items: nodes})
		}
		return a.printNodes(nodes)
	})
}

func (a *app) printNodes(nodes []client.Node) error {
	var rows [][]string
	for _, n := range nodes {
		rows = append(rows, []string{n.Name, number(n.ID), n.Address, n.State, yes(n.Draining)})
	}
	return a.printTable([]string{"NODE", "ID", "ADDRESS", "STATE", "DRAINING"}, rows)
}

// nodeWrite is a verb that changes one node.
func (a *app) nodeWrite(verb, short, done string,
	write func(ctx context.Context, cl *client.Client, cluster, node string, o client.WriteOptions) (client.WriteResult, error),
) *cobra.Command {
	c := &cobra.Command{Use: verb + " CLUSTER NODE", Short: short, Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeNode}
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		res, err := write(ctx, cl, args[0], args[1], w.options())
		if err != nil {
			return err
		}
		return a.printWrite(res, fmt.Sprintf("node %s of cluster %s %s", cell(args[1]), cell(args[0]), done))
	})
}
