package upstream

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestReadCredential(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return "file:" + path
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TURNOUT_TEST_KEY", "key:s3cret:with:colons")
	t.Setenv("TURNOUT_TEST_EMPTY", "")
	tests := []struct {
		name, ref, key, secret string
		bad                    bool
	}{
		{name: "none"},
		{name: "environment", ref: "env:TURNOUT_TEST_KEY", key: "key", secret: "s3cret:with:colons"},
		{name: "file", ref: file("a", "key:s3cret\n"), key: "key", secret: "s3cret"},
		{name: "file with CRLF", ref: file("b", "key:s3cret\r\n"), key: "key", secret: "s3cret"},
		{name: "largest file", ref: file("c", "k:"+strings.Repeat("x", 4094)+"\n"), key: "k", secret: strings.Repeat("x", 4094)},
		{name: "file too large", ref: file("d", "k:"+strings.Repeat("x", 4095)), bad: true},
		{name: "endless file", ref: "file:/dev/zero", bad: true},
		{name: "pipe without a writer", ref: "file:" + pipe, bad: true},
		{name: "directory", ref: "file:" + dir, bad: true},
		{name: "no file", ref: "file:" + dir + "/none", bad: true},
		{name: "more than one line", ref: file("e", "root:x:0:0\nbin:x:1:1\n"), bad: true},
		{name: "no secret", ref: file("f", "s3cret"), bad: true},
		{name: "no key", ref: file("g", ":s3cret"), bad: true},
		{name: "not set", ref: "env:TURNOUT_TEST_NONE", bad: true},
		{name: "empty", ref: "env:TURNOUT_TEST_EMPTY", bad: true},
		{name: "a literal", ref: "key:s3cret", bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := readCredential(tt.ref)
			if (err != nil) != tt.bad || c.key != tt.key || c.secret != tt.secret {
				t.Fatalf("got %q %q %v", c.key, c.secret, err)
			}
			if !tt.bad {
				return
			}
			if ClassOf(err) != ClassNoCredential || !strings.Contains(err.Error(), tt.ref) {
				t.Errorf("error %v does not name the reference", err)
			}
			if tt.name != "a literal" && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error tells the secret: %v", err)
			}
		})
	}
	if s := fmt.Sprintf("%v %+v %#v %s", credential{"k", "s3cret"}, credential{"k", "s3cret"}, credential{"k", "s3cret"}, credential{"k", "s3cret"}); strings.Contains(s, "s3cret") {
		t.Errorf("formatted credential tells the secret: %s", s)
	}
}

// A rotated file is picked up at the next use.
func TestCredentialRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	for _, secret := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte("k:"+secret), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := readCredential("file:" + path); err != nil || c.secret != secret {
			t.Errorf("got %v, want the secret of this turn", err)
		}
	}
}
