package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

func (a *app) deviceCommand() *cobra.Command {
	return group("device", "Devices: where they belong, and commands to them",
		a.deviceAssign(), a.deviceBlock("block", "Refuse a device", true), a.deviceBlock("unblock", "Let a blocked device connect again", false),
		a.deviceGet(), a.deviceRoute(), a.deviceList(), a.deviceRemove(),
		a.deviceImport(), a.deviceExport(), a.deviceCommandVerb())
}

func (a *app) deviceAssign() *cobra.Command {
	var pin string
	var strict bool
	c := &cobra.Command{
		Use: "assign KEY CLUSTER", Short: "Assign a device to a broker cluster, and to one node of it where wanted", Args: cobra.ExactArgs(2),
		ValidArgsFunction: a.completeCluster(1),
	}
	c.Flags().StringVar(&pin, "pin", "", "`NODE` of the cluster that the device belongs to; empty takes a pin away")
	c.Flags().BoolVar(&strict, "strict", false, "refuse the device rather than fall back from its pin")
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		patch := client.DevicePatch{Cluster: &args[1]}
		if c.Flags().Changed("pin") {
			patch.Pin = &pin
		}
		if c.Flags().Changed("strict") {
			patch.PinStrict = &strict
		}
		res, err := cl.PatchDevice(ctx, args[0], patch, w.options())
		if err != nil {
			return err
		}
		return a.printWrite(res, fmt.Sprintf("device %s assigned to %s", cell(args[0]), cell(args[1])))
	})
}

func (a *app) deviceBlock(verb, short string, blocked bool) *cobra.Command {
	c := &cobra.Command{Use: verb + " KEY", Short: short, Args: cobra.ExactArgs(1)}
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		res, err := cl.PatchDevice(ctx, args[0], client.DevicePatch{Blocked: &blocked}, w.options())
		if err != nil {
			return err
		}
		return a.printWrite(res, fmt.Sprintf("device %s %sed", cell(args[0]), verb))
	})
}

func (a *app) deviceGet() *cobra.Command {
	c := &cobra.Command{Use: "get KEY", Short: "Show the record of a device", Args: cobra.ExactArgs(1)}
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		d, err := cl.Device(ctx, args[0])
		if err != nil {
			return err
		}
		if a.output == outputJSON {
			return a.printJSON(d)
		}
		return a.printFields([]field{
			{"key", d.Key}, {"cluster", d.Cluster}, {"origin", d.Origin}, {"pin", nodeRef(d.Pin)}, {"strict", yes(d.PinStrict)},
			{"binding", nodeRef(d.Binding)}, {"blocked", yes(d.Blocked)}, {"version", number(d.Version)},
		})
	})
}

// nodeRef writes a node that a record names; one that is gone has only a number left.
func nodeRef(n *client.NodeRef) string {
	if n != nil && n.Gone {
		return fmt.Sprintf("gone (id %d)", n.ID)
	}
	return n.String()
}

func (a *app) deviceRoute() *cobra.Command {
	var clientID, username string
	c := &cobra.Command{
		Use: "route KEY", Short: "Explain where the gateway would send a device now", Args: cobra.ExactArgs(1),
		Long: `Explain where the gateway would send a device now. With --client-id or --username the explanation is for a CONNECT that carries them;
nothing is sent to a broker and nothing is recorded.`,
	}
	c.Flags().StringVar(&clientID, "client-id", "", "client identifier `TEXT` of the CONNECT")
	c.Flags().StringVar(&username, "username", "", "user name `TEXT` of the CONNECT")
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		var q client.ExplainQuery
		if c.Flags().Changed("client-id") {
			q.ClientID = &clientID
		}
		if c.Flags().Changed("username") {
			q.Username = &username
		}
		e, err := cl.Explain(ctx, args[0], q)
		if err != nil {
			return err
		}
		if a.output == outputJSON {
			return a.printJSON(e)
		}
		return a.printExplanation(e)
	})
}

func (a *app) printExplanation(e client.Explanation) error {
	fields := []field{
		{"key", e.Key}, {"verdict", e.Verdict}, {"reason", e.Reason}, {"detail", e.Detail}, {"cluster", e.Cluster},
		{"recorded", yes(e.Recorded)}, {"would bind", yes(e.WouldBind)}, {"index", number(e.Index)},
	}
	if k := e.DerivedKey; k != nil && *k == "" {
		fields = append(fields, field{"key of the CONNECT", "(empty: routed, never recorded)"})
	} else if k != nil {
		fields = append(fields, field{"key of the CONNECT", *k})
	}
	if err := a.printFields(fields); err != nil || len(e.Nodes) == 0 {
		return err
	}
	fmt.Fprintln(a.stdout)
	var rows [][]string
	for i, n := range e.Nodes {
		rows = append(rows, []string{number(i + 1), n.Name, n.Address, n.State, yes(n.Draining), n.Reason})
	}
	return a.printTable([]string{"TRY", "NODE", "ADDRESS", "STATE", "DRAINING", "REASON"}, rows)
}

// pageSize is how many devices are asked for at once.
const pageSize = 1000

func (a *app) deviceList() *cobra.Command {
	var q client.DeviceQuery
	var limit int
	var all bool
	c := &cobra.Command{Use: "list", Short: "List devices", Args: cobra.NoArgs}
	f := c.Flags()
	f.StringVar(&q.Cluster, "cluster", "", "only devices of this `CLUSTER`")
	f.StringVar(&q.Prefix, "prefix", "", "only devices whose key begins with `TEXT`")
	f.IntVar(&limit, "limit", 100, "at most `NUMBER` devices")
	f.BoolVar(&all, "all", false, "every device that matches, however many")
	c.MarkFlagsMutuallyExclusive("limit", "all")
	registerClusterFlag(a, c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, _ []string) error {
		if limit < 1 {
			return usageError("--limit must be at least 1")
		}
		if all {
			limit = 0
		}
		if a.output == outputJSON {
			return a.listDevicesJSON(ctx, cl, q, limit)
		}
		return a.listDevices(ctx, cl, q, limit)
	})
}

// registerClusterFlag completes --cluster.
func registerClusterFlag(a *app, c *cobra.Command) {
	complete := func(c *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.completeCluster(0)(c, nil, prefix)
	}
	if err := c.RegisterFlagCompletionFunc("cluster", complete); err != nil {
		panic("the caller has the flag: " + err.Error())
	}
}

// pages asks for devices page by page until limit (0 for no limit) is reached. Each page is handed over as it comes, so a long list needs no
// memory. It reports the cursor of what was left.
func pages(ctx context.Context, cl *client.Client, q client.DeviceQuery, limit int, each func([]client.Device) error) (next string, err error) {
	for got := 0; ; {
		q.Limit = pageSize
		if limit > 0 {
			q.Limit = min(pageSize, limit-got)
		}
		page, err := cl.DevicePage(ctx, q)
		if err != nil {
			return "", err
		}
		if err := each(page.Items); err != nil {
			return "", err
		}
		got += len(page.Items)
		if page.NextCursor == "" || limit > 0 && got >= limit {
			return page.NextCursor, nil
		}
		if page.NextCursor == q.Cursor {
			return "", errors.New("list devices: the cursor does not move")
		}
		q.Cursor = page.NextCursor
	}
}

// listDevices prints a table; its columns are fitted page by page.
func (a *app) listDevices(ctx context.Context, cl *client.Client, q client.DeviceQuery, limit int) error {
	header := []string{"KEY", "CLUSTER", "ORIGIN", "PIN", "BINDING", "BLOCKED"}
	next, err := pages(ctx, cl, q, limit, func(devices []client.Device) error {
		var rows [][]string
		for _, d := range devices {
			pin := nodeRef(d.Pin)
			if d.PinStrict && pin != "" {
				pin += " strict"
			}
			rows = append(rows, []string{d.Key, d.Cluster, d.Origin, pin, nodeRef(d.Binding), yes(d.Blocked)})
		}
		err := a.printTable(header, rows)
		header = nil
		return err
	})
	if err == nil && next != "" {
		fmt.Fprintln(a.stderr, "turnout: device list: there are more; --limit or --all shows them")
	}
	return err
}

// listDevicesJSON prints one page object that holds all that was asked for, piece by piece.
func (a *app) listDevicesJSON(ctx context.Context, cl *client.Client, q client.DeviceQuery, limit int) error {
	separator := "{\n  \"items\": ["
	next, err := pages(ctx, cl, q, limit, func(devices []client.Device) error {
		for _, d := range devices {
			text, err := indentJSON(d, "    ")
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(a.stdout, "%s\n    %s", separator, text); err != nil {
				return err
			}
			separator = ","
		}
		return nil
	})
	if err != nil {
		return err // what was printed is not complete JSON, so nobody takes it for the whole
	}
	if separator != "," {
		_, err = fmt.Fprintf(a.stdout, "%s]", separator)
	} else {
		_, err = fmt.Fprint(a.stdout, "\n  ]")
	}
	if err == nil && next != "" {
		_, err = fmt.Fprintf(a.stdout, ",\n  \"next_cursor\": %q", next)
	}
	if err == nil {
		_, err = fmt.Fprintln(a.stdout, "\n}")
	}
	return err
}

func (a *app) deviceRemove() *cobra.Command {
	c := &cobra.Command{
		Use: "remove KEY...", Short: "Delete the records of devices; a device that comes back is placed anew", Args: cobra.MinimumNArgs(1),
	}
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		for i, key := range args {
			res, err := cl.DeleteDevice(ctx, key, w.options())
			if err != nil {
				return fmt.Errorf("%s (%d of %d removed): %w", cell(key), i, len(args), err)
			}
			if err := a.printWrite(res, fmt.Sprintf("device %s removed", cell(key))); err != nil {
				return err
			}
		}
		return nil
	})
}
