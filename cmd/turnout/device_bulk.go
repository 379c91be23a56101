package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

// progressLines is how many lines are sent between two lines of progress.
const progressLines = 100_000

func (a *app) deviceImport() *cobra.Command {
	c := &cobra.Command{
		Use: "import FILE|-", Short: "Write many devices from NDJSON or CSV", Args: cobra.ExactArgs(1),
		Long: `Write many devices from a file, or from standard input for "-". A file that begins with { is NDJSON, one object to a line;
any other is CSV with a header of key, cluster, pin, pin_strict and blocked in any order. Only key is needed; what is left out or empty
stays as it is stored. Lines are committed in batches: when the import stops, the message names the last committed line, and to import
the same lines again does no harm.`,
		Example: `  turnout device import devices.csv
  turnout device export | gzip > devices.ndjson.gz
  zcat devices.ndjson.gz | turnout device import -`,
	}
	w := addWriteFlags(c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, args []string) error {
		in := a.stdin
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("open import: %w", err)
			}
			defer f.Close()
			in = f
		}
		lines, err := newLineSource(in)
		if err != nil {
			return fmt.Errorf("read import: %w", err)
		}
		progress := &progressReader{from: lines, report: func(n int) { fmt.Fprintf(a.stderr, "turnout: device import: %d lines sent\n", n) }}
		res, err := cl.ImportDevices(ctx, progress, w.options())
		if broken := lines.Err(); broken != nil {
			// The stream ended early but in order, so the answer tells what became of the lines before.
			if err == nil {
				return fmt.Errorf("%w; last committed line %d", broken, res.LastCommittedLine)
			}
			return fmt.Errorf("%w; %w", broken, err)
		}
		if err != nil {
			return importError(err)
		}
		if a.output == outputJSON {
			return a.printJSON(res)
		}
		_, err = fmt.Fprintf(a.stdout, "%d devices written, last committed line %d%s\n", res.Accepted, res.LastCommittedLine, lagging(res.Lagging))
		return err
	})
}

// importError adds what a broken connection leaves open. A Problem says itself how far the import came, and without a connection
// nothing was sent.
func importError(err error) error {
	var p *client.Problem
	var op *net.OpError
	if errors.As(err, &p) || errors.As(err, &op) && op.Op == "dial" {
		return err
	}
	return fmt.Errorf("%w; how many lines are committed is not known; importing them again does no harm", err)
}

// lineSource is NDJSON to send. When the input cannot be read on it ends as if it were complete and Err says why.
type lineSource interface {
	io.Reader
	Err() error
}

// newLineSource looks at the first byte that is no white space to tell NDJSON from CSV.
func newLineSource(r io.Reader) (lineSource, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	if bom, err := in.Peek(3); err == nil && string(bom) == "\xef\xbb\xbf" {
		if _, err := in.Discard(3); err != nil {
			return nil, err
		}
	}
	for n := 1; ; n++ {
		head, err := in.Peek(n)
		switch {
		case err == nil && isSpace(head[n-1]):
			continue
		case err == nil && head[n-1] == '{', errors.Is(err, io.EOF):
			return &ndjsonSource{in: in}, nil
		case err != nil:
			return nil, err
		}
		return newCSVSource(in)
	}
}

func isSpace(b byte) bool { return b == ' ' || b == '\t' || b == '\r' || b == '\n' }

// ndjsonSource passes the input through.
type ndjsonSource struct {
	in  io.Reader
	err error
}

func (s *ndjsonSource) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = fmt.Errorf("read import: %w", err)
		err = io.EOF
	}
	return n, err
}

// Err implements lineSource.
func (s *ndjsonSource) Err() error { return s.err }

// progressReader counts the lines that pass.
type progressReader struct {
	from   io.Reader
	report func(lines int)
	lines  int
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.from.Read(b)
	for _, ch := range b[:n] {
		if ch == '\n' {
			p.lines++
			if p.lines%progressLines == 0 {
				p.report(p.lines)
			}
		}
	}
	return n, err
}

func (a *app) deviceExport() *cobra.Command {
	var q client.DeviceQuery
	c := &cobra.Command{
		Use: "export", Short: "Print all devices as NDJSON, as import reads it", Args: cobra.NoArgs,
	}
	c.Flags().StringVar(&q.Cluster, "cluster", "", "only devices of this `CLUSTER`")
	c.Flags().StringVar(&q.Prefix, "prefix", "", "only devices whose key begins with `TEXT`")
	registerClusterFlag(a, c)
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, _ []string) error {
		out := bufio.NewWriterSize(a.stdout, 64<<10)
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		for line, err := range cl.ExportDevices(ctx, q) {
			if err != nil {
				return errors.Join(err, out.Flush())
			}
			if err := enc.Encode(line); err != nil {
				return fmt.Errorf("write export: %w", err)
			}
		}
		return out.Flush()
	})
}
