package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"
)

// The forms of output.
const (
	outputTable = "table"
	outputJSON  = "json"
)

// printJSON prints v as the API would, indented.
func (a *app) printJSON(v any) error {
	text, err := indentJSON(v, "")
	if err == nil {
		_, err = fmt.Fprintln(a.stdout, text)
	}
	return err
}

// indentJSON leaves '<', '>' and '&' as they are, unlike json.MarshalIndent.
func indentJSON(v any, prefix string) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent(prefix, "  ")
	if err := e.Encode(v); err != nil {
		return "", fmt.Errorf("encode answer: %w", err)
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// printTable prints rows under a header, if there is one, in columns. Cells are made safe for a terminal here and nowhere else.
func (a *app) printTable(header []string, rows [][]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	if header != nil {
		fmt.Fprintln(w, strings.Join(header, "\t"))
	}
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, c := range row {
			cells[i] = cell(c)
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

// field is one line of a description.
type field struct{ name, value string }

// printFields prints one object, a line for each field that has a value.
func (a *app) printFields(fields []field) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	for _, f := range fields {
		if f.value != "" {
			fmt.Fprintf(w, "%s\t%s\n", f.name, cell(f.value))
		}
	}
	return w.Flush()
}

// cell returns text as it may appear on a terminal: what a device or a broker chose could hold escape sequences or
// look like another column, so anything that does not print is quoted. An absent value is a dash.
func cell(s string) string {
	switch {
	case s == "":
		return "-"
	case printable(s) && s[0] != '"' && strings.TrimSpace(s) == s:
		return s
	}
	return strconv.Quote(s)
}

func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// oneLine squeezes text into one printable line.
func oneLine(s string) string {
	var b strings.Builder
	for line := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if text := b.String(); text != "" && !strings.HasSuffix(text, ":") && !strings.HasSuffix(text, "?") {
			b.WriteByte(';')
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(line)
	}
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsPrint(r):
			return r
		case r == '\t':
			return ' '
		}
		return '?'
	}, b.String())
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

type integer interface {
	int | uint8 | uint16 | uint32 | uint64
}

func number[T integer](n T) string { return fmt.Sprint(n) }

// optional writes a number that may be missing.
func optional[T integer](n *T) string {
	if n == nil {
		return ""
	}
	return fmt.Sprint(*n)
}
