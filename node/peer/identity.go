package peer

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"turnout/fsm"
)

// Files in the data directory. Together they say what this gateway is; none of them is ever changed in place.
const (
	fileGatewayID = "gateway-id"        // who this gateway is, for the life of the directory
	fileClusterID = "cluster-id"        // which cluster it belongs to, once it does
	fileBootstrap = "bootstrap"         // the list of voters it was bootstrapped with, until all of them have it
	filePromise   = "bootstrap-promise" // id of the gateway that may bootstrap this one
)

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// newUUID returns a random UUID, version 4 (RFC 9562 section 5.4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// openDirectory makes the data directory, readable for its owner alone.
func openDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	return nil
}

// loadGatewayID returns the id in the data directory, which it makes if there is none.
func loadGatewayID(dir string) (fsm.GatewayID, error) {
	path := filepath.Join(dir, fileGatewayID)
	id, err := readID(path)
	if err != nil {
		return "", err
	}
	if id == "" {
		id = newUUID()
		if err := writeFile(path, []byte(id+"\n")); err != nil {
			return "", err
		}
	}
	return fsm.GatewayID(id), nil
}

// readID reads a file with one UUID. A file that is not there is the empty id; anything else in it is an error.
func readID(path string) (string, error) {
	b, err := readBounded(path, 256)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(b))
	if !uuidPattern.MatchString(id) {
		return "", fmt.Errorf("read %s: not a UUID; restore the file or empty the whole data directory", path)
	}
	return id, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read file: %w", err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: more than %d bytes", path, limit)
	}
	return b, nil
}

// writeFile puts a whole file in place so that a crash leaves the old one, none or the new one.
func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("rename file: %w", err)
	}
	return syncDirectory(filepath.Dir(path))
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// removeFile deletes a file that may be gone already.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove file: %w", err)
	}
	return syncDirectory(filepath.Dir(path))
}
