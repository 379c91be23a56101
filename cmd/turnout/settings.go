package main

import (
	"context"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

func (a *app) settingsCommand() *cobra.Command {
	return group("settings", "Settings that all gateways share", a.settingsShow(), a.settingsSetIdentity())
}

func (a *app) settingsShow() *cobra.Command {
	c := &cobra.Command{Use: "show", Short: "Show the shared settings", Args: cobra.NoArgs}
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, _ []string) error {
		s, err := cl.Settings(ctx)
		if err != nil {
			return err
		}
		if a.output == outputJSON {
			return a.printJSON(s)
		}
		return a.printFields([]field{{"cluster id", s.ClusterID}, {"identity", s.Identity}, {"version", number(s.Version)}})
	})
}

func (a *app) settingsSetIdentity() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "set-identity TEMPLATE", Short: "Set what a device is known by", Args: cobra.ExactArgs(1),
		Long: `Set the template that makes a device's key of its CONNECT: text with {client_id}, {username} and {password_hmac}. Records keep the
keys of the old template, so a change with devices recorded needs --force.`,
		Example: `  turnout settings set-identity '{username}/{client_id}'`,
	}
	c.Flags().BoolVar(&force, "force", false, "change it although devices are recorded under keys of the old one")
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		res, err := cl.PatchSettings(ctx, client.SettingsPatch{Identity: &args[0], Force: force}, w.options())
		if err != nil {
			return err
		}
		return a.printWrite(res, "identity template set")
	})
}
