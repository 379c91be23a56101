package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

func (a *app) gatewayCommand() *cobra.Command {
	return group("gateway", "The gateways of this cluster", a.gatewayList(), a.gatewayRemove())
}

func (a *app) gatewayList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the gateways as the asked one sees them", Args: cobra.NoArgs}
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, _ []string) error {
		gateways, err := cl.Gateways(ctx)
		if err != nil {
			return err
		}
		if a.output == outputJSON {
			return a.printJSON(client.GatewayList{Items: gateways})
		}
		var rows [][]string
		for _, g := range gateways {
			role := g.Role
			if g.Leader {
				role += ", leader"
			}
			rows = append(rows, []string{g.Name, g.Zone, role, g.Liveness, yes(g.Self), g.PeerAddress, g.APIAddress, g.Release, g.ID})
		}
		return a.printTable([]string{"NAME", "ZONE", "ROLE", "LIVENESS", "ASKED", "PEER", "API", "RELEASE", "ID"}, rows)
	})
}

func (a *app) gatewayRemove() *cobra.Command {
	c := &cobra.Command{
		Use: "remove ID", Short: "Take a gateway that will not come back off the roster", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGateway,
	}
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		res, err := cl.DeleteGateway(ctx, args[0], w.options())
		if err != nil {
			return err
		}
		return a.printWrite(res, fmt.Sprintf("gateway %s removed", cell(args[0])))
	})
}
