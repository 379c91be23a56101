package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

// connection says which gateway a client verb talks to, and how.
type connection struct {
	url, tokenFile, caFile string
	timeout                time.Duration
}

// maxSecretFile bounds the token and CA files that are read.
const maxSecretFile = 1 << 20

// clientVerb is the body of a verb that needs a gateway.
type clientVerb func(ctx context.Context, c *client.Client, args []string) error

// clientCommand gives a command its connection and output flags and makes f its body.
func (a *app) clientCommand(c *cobra.Command, f clientVerb) *cobra.Command {
	a.connectionFlags(c)
	a.outputFlag(c)
	c.RunE = a.verb(func(ctx context.Context, args []string) error {
		cl, err := a.connect(true)
		if err != nil {
			return err
		}
		defer cl.Close()
		return f(ctx, cl, args)
	})
	return c
}

// connectionFlags adds the flags of the connection. Where --url already means the broker's URL, the gateway's is --gateway-url.
func (a *app) connectionFlags(c *cobra.Command) {
	f := c.Flags()
	name := "url"
	if f.Lookup(name) != nil {
		name = "gateway-url"
	}
	address := a.getenv("TURNOUT_URL")
	if address == "" {
		address = "http://127.0.0.1:8080"
	}
	f.StringVar(&a.conn.url, name, address, "`URL` of a gateway's admin API (TURNOUT_URL)")
	f.StringVar(&a.conn.tokenFile, "token-file", a.getenv("TURNOUT_TOKEN_FILE"), "`FILE` that holds the bearer token (TURNOUT_TOKEN_FILE)")
	f.StringVar(&a.conn.caFile, "ca-file", a.getenv("TURNOUT_CA_FILE"), "`FILE` of PEM certificates to trust instead of the system's (TURNOUT_CA_FILE)")
	f.DurationVar(&a.conn.timeout, "timeout", 30*time.Second, "`LIMIT` of one request; imports and exports have none")
}

func (a *app) outputFlag(c *cobra.Command) {
	a.output = outputTable
	choiceFlag(c, &a.output, "output", "o", "form of the answer", outputTable, outputJSON)
}

// connect makes a client from the connection flags. It does not connect yet.
func (a *app) connect(withToken bool) (*client.Client, error) {
	if a.conn.timeout <= 0 {
		return nil, usageError("--timeout must be more than 0")
	}
	o := client.Options{URL: a.conn.url, Timeout: a.conn.timeout}
	if withToken && a.conn.tokenFile != "" {
		text, err := readBounded(a.conn.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("read token: %w", err)
		}
		o.Token = string(bytes.TrimSpace(text))
		if o.Token == "" {
			return nil, fmt.Errorf("read token: %s is empty", a.conn.tokenFile)
		}
	}
	if a.conn.caFile != "" {
		text, err := readBounded(a.conn.caFile)
		if err != nil {
			return nil, fmt.Errorf("read ca: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read ca: %s holds no PEM certificate", a.conn.caFile)
		}
		o.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return client.New(o)
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(b) > maxSecretFile {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxSecretFile)
	}
	return b, err
}

// describe turns an error into what an operator can act on.
func (a *app) describe(err error) string {
	text := err.Error()
	var p *client.Problem
	if errors.As(err, &p) {
		if p.Code == "" { // not a Turnout answer
			text = strings.Replace(text, p.Error(), fmt.Sprintf("%d %s: %s", p.Status, p.Title, p.Detail), 1)
		}
		switch {
		case p.RetryAfter > 0:
			text += fmt.Sprintf("; try again in %s", p.RetryAfter)
		case p.Code == client.CodeUnauthorized && a.conn.tokenFile == "":
			text += "; name the file that holds the token with --token-file or TURNOUT_TOKEN_FILE"
		}
		return text
	}
	var u *url.Error
	if errors.As(err, &u) {
		what := fmt.Sprintf("no answer from %s", a.conn.url)
		if u.Timeout() {
			what += " in time"
		}
		text = strings.Replace(text, u.Error(), fmt.Sprintf("%s: %v", what, u.Err), 1)
		text = strings.Replace(text, "send request: ", "", 1)
	}
	return text
}

// writeFlags go with every verb that changes something.
type writeFlags struct{ wait string }

func addWriteFlags(c *cobra.Command) *writeFlags {
	w := &writeFlags{}
	choiceFlag(c, &w.wait, "wait", "", "return once every reachable gateway has applied the change", "all")
	return w
}

func (w *writeFlags) options() client.WriteOptions {
	return client.WriteOptions{WaitAll: w.wait == "all"}
}

// printWrite prints the result of a write: the API's object, or a sentence.
func (a *app) printWrite(res client.WriteResult, done string) error {
	if a.output == outputJSON {
		return a.printJSON(res)
	}
	_, err := fmt.Fprintln(a.stdout, done+lagging(res.Lagging))
	return err
}

// lagging says who had not applied a write in time.
func lagging(ids []string) string {
	if len(ids) == 0 {
		return ""
	}
	cells := make([]string, len(ids))
	for i, id := range ids {
		cells[i] = cell(id)
	}
	return "; not applied yet by " + strings.Join(cells, ", ")
}
