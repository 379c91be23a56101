package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// TestEveryStepHolds runs the demo as `make demo DEMOFLAGS=--once` does.
func TestEveryStepHolds(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out, slog.New(slog.DiscardHandler), true); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "Every step was seen to hold.") {
		t.Errorf("output:\n%s", &out)
	}
}
