package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"turnout/api/client"
)

// csvColumns are the columns that an import may have.
var csvColumns = [...]string{"key", "cluster", "pin", "pin_strict", "blocked"}

// csvSource turns CSV (RFC 4180) into NDJSON. Each object stands in the line in which its record begins, with empty lines between where they are
// needed, so that line numbers in the gateway's answer are those of the file.
type csvSource struct {
	in     *csv.Reader
	budget *budgetReader
	header []string
	line   int // the line of output that is written next
	out    bytes.Buffer
	err    error
}

func newCSVSource(r io.Reader) (*csvSource, error) {
	budget := &budgetReader{from: r, left: maxRecord}
	in := csv.NewReader(budget)
	in.ReuseRecord = true
	header, err := in.Read()
	if err != nil {
		return nil, csvError(err)
	}
	s := &csvSource{in: in, budget: budget, header: slices.Clone(header), line: 1}
	for i, name := range s.header {
		if !slices.Contains(csvColumns[:], name) {
			return nil, fmt.Errorf("column %d of the header is not one of key, cluster, pin, pin_strict, blocked", i+1)
		}
		if slices.Contains(s.header[:i], name) {
			return nil, fmt.Errorf("the header names %s twice", name)
		}
	}
	if !slices.Contains(s.header, "key") {
		return nil, errors.New("the header names no key")
	}
	return s, nil
}

// Read implements io.Reader.
func (s *csvSource) Read(p []byte) (int, error) {
	for s.out.Len() == 0 {
		if err := s.next(); err != nil {
			if !errors.Is(err, io.EOF) {
				s.err = err
			}
			return 0, io.EOF
		}
	}
	return s.out.Read(p)
}

// Err implements lineSource.
func (s *csvSource) Err() error { return s.err }

// next appends one record to the output. Its errors name the line of the file.
func (s *csvSource) next() error {
	if s.err != nil {
		return s.err
	}
	s.budget.left = maxRecord
	record, err := s.in.Read()
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	if err != nil {
		return csvError(err)
	}
	at, _ := s.in.FieldPos(0)
	var d client.DeviceLine
	for i, value := range record {
		if err := setColumn(&d, s.header[i], value); err != nil {
			return fmt.Errorf("line %d: %w", at, err)
		}
	}
	text, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("line %d: %w", at, err)
	}
	for ; s.line < at; s.line++ {
		s.out.WriteByte('\n')
	}
	s.out.Write(text)
	s.out.WriteByte('\n')
	s.line++
	return nil
}

// setColumn lays one cell over d. An empty cell says nothing.
func setColumn(d *client.DeviceLine, column, value string) error {
	if value == "" && column != "key" {
		return nil
	}
	switch column {
	case "key":
		d.Key = value
	case "cluster":
		d.Cluster = &value
	case "pin":
		d.Pin = &value
	case "pin_strict", "blocked":
		b, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%s must be true or false", column)
		}
		if column == "blocked" {
			d.Blocked = &b
		} else {
			d.PinStrict = &b
		}
	}
	return nil
}

// maxRecord bounds what is read for one record: a quote that is never closed would otherwise take the whole file into memory.
const maxRecord = 64 << 10

// budgetReader ends with an error when more is read than was left.
type budgetReader struct {
	from io.Reader
	left int
}

func (b *budgetReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("a record has more than %d bytes; is a quote not closed?", maxRecord)
	}
	n, err := b.from.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// csvError names the line without repeating what stands there.
func csvError(err error) error {
	var p *csv.ParseError
	if errors.As(err, &p) {
		return fmt.Errorf("line %d: %w", p.Line, p.Err)
	}
	return fmt.Errorf("read import: %w", err)
}
