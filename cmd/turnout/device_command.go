package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

// maxPayload is the most that any channel takes; the cluster's own limit may be lower.
const maxPayload = 1 << 20

func (a *app) deviceCommandVerb() *cobra.Command {
	var cmd client.Command
	var payload, file string
	var qos uint8
	var expiry uint32
	c := &cobra.Command{
		Use: "command KEY", Short: "Send a command to a device through its home cluster", Args: cobra.ExactArgs(1),
		Long: `Send a command to a device through the channel of its home cluster and print what happened to it. The exit code is 0 only for
dispatched (the broker had a subscriber) and accepted (the broker does not tell).`,
	}
	f := c.Flags()
	f.StringVar(&payload, "payload", "", "payload as `TEXT`")
	f.StringVar(&file, "payload-file", "", "`FILE` with the payload, - for standard input")
	f.Uint8Var(&qos, "qos", 0, "quality of service `QOS`, 0 or 1; without it the channel's")
	f.Uint32Var(&expiry, "expiry", 0, "message expiry in `SECONDS`; without it the channel's")
	f.StringVar(&cmd.ID, "id", "", "idempotency `ID`; the gateway makes one up without it")
	c.MarkFlagsOneRequired("payload", "payload-file")
	c.MarkFlagsMutuallyExclusive("payload", "payload-file")
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		if f.Changed("qos") {
			cmd.QoS = &qos
		}
		if f.Changed("expiry") {
			cmd.ExpirySeconds = &expiry
		}
		if f.Changed("payload-file") {
			b, err := a.readPayload(file)
			if err != nil {
				return fmt.Errorf("read payload: %w", err)
			}
			payload = string(b)
		}
		if utf8.ValidString(payload) {
			cmd.Payload = &payload
		} else {
			text := base64.StdEncoding.EncodeToString([]byte(payload))
			cmd.PayloadBase64 = &text
		}
		res, err := cl.SendCommand(ctx, args[0], cmd)
		if err != nil {
			return err
		}
		if err := a.printCommandResult(res); err != nil {
			return err
		}
		if res.Outcome != "dispatched" && res.Outcome != "accepted" {
			return fmt.Errorf("the command was not delivered: %s", cell(res.Outcome))
		}
		return nil
	})
}

func (a *app) readPayload(file string) ([]byte, error) {
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxPayload+1))
	if err == nil && len(b) > maxPayload {
		return nil, fmt.Errorf("more than %d bytes", maxPayload)
	}
	return b, err
}

func (a *app) printCommandResult(r client.CommandResult) error {
	if a.output == outputJSON {
		return a.printJSON(r)
	}
	return a.printFields([]field{{"outcome", r.Outcome}, {"detail", r.Detail}, {"cluster", r.Cluster}, {"node", r.Node}, {"id", r.ID}})
}
