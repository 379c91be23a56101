package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

func (a *app) tokenCommand() *cobra.Command {
	return group("token", "Bearer tokens of the admin API", a.tokenNew())
}

func (a *app) tokenNew() *cobra.Command {
	var name, role string
	c := &cobra.Command{
		Use: "new", Short: "Make a token and the line for the gateways' tokens file", Args: cobra.NoArgs,
		Long: `Make a random token. The first line of the answer is the token, for the file that --token-file names; it is shown this once. The
second is its hash, for the file that api.tokens_file names on every gateway. Nothing is sent anywhere.`,
	}
	c.Flags().StringVar(&name, "name", "", "`NAME` of who the token is for; stands in the audit log")
	choiceFlag(c, &role, "role", "", "what the token may do", "read", "operate", "admin")
	for _, flag := range []string{"name", "role"} {
		if err := c.MarkFlagRequired(flag); err != nil {
			panic("the flag was added above: " + err.Error())
		}
	}
	c.RunE = a.verb(func(context.Context, []string) error {
		if name == "" || !printable(name) {
			return usageError("--name must be printable text")
		}
		var secret [32]byte
		if _, err := rand.Read(secret[:]); err != nil {
			return fmt.Errorf("make token: %w", err)
		}
		token := "turnout_" + base64.RawURLEncoding.EncodeToString(secret[:])
		quoted, err := json.Marshal(name) // JSON text is YAML text
		if err != nil {
			return fmt.Errorf("make token: %w", err)
		}
		_, err = fmt.Fprintf(a.stdout, "%s\n- {name: %s, role: %s, sha256: %s}\n", token, quoted, role, client.HashToken(token))
		return err
	})
	return c
}
