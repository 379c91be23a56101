package upstream

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unicode"
)

// maxCredentialBytes bounds what a reference may lead to.
const maxCredentialBytes = 4 << 10

// credential is a key and its secret. The zero value means none. It is never logged or put into an error.
type credential struct {
	key, secret string
}

// String keeps a secret out of a careless log line.
func (c credential) String() string { return "credential" }

// GoString does the same for %#v.
func (c credential) GoString() string { return "credential" }

// readCredential follows a reference, "env:NAME" or "file:/path", anew at each use, so that a rotated secret is picked up. What it
// leads to is one line "key:secret" of at most 4 KiB; a trailing newline is cut. Errors name the reference only.
//
// More than one line is refused: a reference comes from whoever may write clusters, and must not carry off
// files that were never meant as a credential.
func readCredential(ref string) (credential, error) {
	if ref == "" {
		return credential{}, nil
	}
	refuse := func(why string) (credential, error) {
		return credential{}, &Error{Class: ClassNoCredential, Detail: fmt.Sprintf("%q %s", ref, why)}
	}
	var text string
	if name, ok := strings.CutPrefix(ref, "env:"); ok {
		text, ok = os.LookupEnv(name)
		if !ok {
			return refuse("is not set")
		}
	} else if path, ok := strings.CutPrefix(ref, "file:"); ok {
		var why string
		if text, why = readSmallFile(path); why != "" {
			return refuse(why)
		}
	} else {
		return refuse("is not a reference")
	}
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if len(text) > maxCredentialBytes {
		return refuse("is longer than 4 KiB")
	}
	key, secret, ok := strings.Cut(text, ":")
	if !ok || key == "" || strings.IndexFunc(text, unicode.IsControl) >= 0 {
		return refuse("does not hold one line of the form key:secret")
	}
	return credential{key: key, secret: secret}, nil
}

// readSmallFile reads a regular file. It opens without blocking, because the path may be a pipe that nobody writes to.
func readSmallFile(path string) (text, why string) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", "cannot be read"
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", "is not a regular file"
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCredentialBytes+3))
	if err != nil {
		return "", "cannot be read"
	}
	return string(b), ""
}
