package api

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Role orders what a token may do; each role may do what the ones before it may.
type Role uint8

// The roles. RoleNone is not given to tokens: it marks operations that need none.
const (
	RoleNone    Role = iota // health, readiness, the OpenAPI document
	RoleRead                // all reading
	RoleOperate             // devices, drains, commands
	RoleAdmin               // clusters, members, policy, settings, gateways
)

// String returns the role as tokens files and the OpenAPI document spell it.
func (r Role) String() string {
	switch r {
	case RoleRead:
		return "read"
	case RoleOperate:
		return "operate"
	case RoleAdmin:
		return "admin"
	}
	return "none"
}

func parseRole(s string) (Role, bool) {
	for _, r := range []Role{RoleRead, RoleOperate, RoleAdmin} {
		if r.String() == s {
			return r, true
		}
	}
	return RoleNone, false
}

// token is one bearer token as it is kept: nobody can use it who reads it.
type token struct {
	name string
	role Role
	hash [sha256.Size]byte
}

// tokenRow is one entry of a tokens file.
type tokenRow struct {
	Name   string `yaml:"name"`
	Role   string `yaml:"role"`
	SHA256 string `yaml:"sha256"` // of the token, hexadecimal
}

// maxTokensFile bounds a tokens file, in bytes.
const maxTokensFile = 1 << 20

// loadTokens reads a tokens file. A file that others may read is taken, with a warning: hashes of random tokens do not give them away,
// but who may write the file may let himself in. No error holds anything of an entry but its name's position.
func loadTokens(path string, log *slog.Logger) ([]token, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open tokens: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Mode().Perm()&0o077 != 0 {
		log.Warn("tokens file is open to others", "file", path, "mode", st.Mode().Perm().String(), "want", "0600")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTokensFile+1))
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	if len(b) > maxTokensFile {
		return nil, fmt.Errorf("read tokens: %s is over %d bytes", path, maxTokensFile)
	}
	tokens, err := parseTokens(b)
	if err != nil {
		return nil, fmt.Errorf("parse tokens: %s: %w", path, err)
	}
	return tokens, nil
}

func parseTokens(b []byte) ([]token, error) {
	var rows []tokenRow
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&rows); err != nil && !errors.Is(err, io.EOF) {
		text, _, _ := strings.Cut(err.Error(), "`") // what follows is a value of the file
		return nil, errors.New(strings.TrimSpace(text))
	}
	if len(rows) == 0 {
		return nil, errors.New("has no token: nobody could use the API")
	}
	tokens := make([]token, len(rows))
	for i, row := range rows {
		role, ok := parseRole(row.Role)
		hash, err := hex.DecodeString(row.SHA256)
		switch {
		case row.Name == "":
			return nil, fmt.Errorf("entry %d: name is missing", i+1)
		case !ok:
			return nil, fmt.Errorf("entry %d: role must be read, operate or admin", i+1)
		case err != nil || len(hash) != sha256.Size:
			return nil, fmt.Errorf("entry %d: sha256 must be 64 hexadecimal digits", i+1)
		}
		tokens[i] = token{name: row.Name, role: role, hash: [sha256.Size]byte(hash)}
	}
	return tokens, nil
}

// findToken looks up a presented token. It compares hashes, all of them, in constant time.
func findToken(tokens []token, presented string) (token, bool) {
	sum := sha256.Sum256([]byte(presented))
	found := -1
	for i := range tokens {
		if subtle.ConstantTimeCompare(tokens[i].hash[:], sum[:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return token{}, false
	}
	return tokens[found], true
}

// bearer takes the token out of Authorization headers (RFC 6750 section 2.1); two of them are as good as none.
func bearer(headers []string) (string, bool) {
	if len(headers) != 1 {
		return "", false
	}
	scheme, value, ok := strings.Cut(headers[0], " ")
	value = strings.TrimSpace(value)
	return value, ok && strings.EqualFold(scheme, "Bearer") && value != ""
}
