package api

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate serves the certificate of two files and follows them when they change. A change that cannot be loaded is
// logged, and the certificate that was there stays.
type certificate struct {
	files TLSConfig
	log   *slog.Logger
	now   func() time.Time

	mu      sync.Mutex // guards everything below
	current *tls.Certificate
	stamp   [2]fileStamp
	checked time.Time
}

// fileStamp is what a replaced file differs in.
type fileStamp struct {
	modified time.Time
	size     int64
}

// checkEvery bounds how often handshakes look at the files.
const checkEvery = 5 * time.Second

func newCertificate(files TLSConfig, log *slog.Logger, now func() time.Time) (*certificate, error) {
	c := &certificate{files: files, log: log, now: now}
	return c, c.reload()
}

func (c *certificate) stampFiles() (s [2]fileStamp) {
	for i, name := range []string{c.files.CertFile, c.files.KeyFile} {
		if st, err := os.Stat(name); err == nil {
			s[i] = fileStamp{modified: st.ModTime(), size: st.Size()}
		}
	}
	return s
}

// reload reads the files now.
func (c *certificate) reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.load(c.stampFiles())
}

// load expects c.mu. The stamp was taken before reading, so that a change while reading is seen next time.
func (c *certificate) load(stamp [2]fileStamp) error {
	c.stamp, c.checked = stamp, c.now()
	pair, err := tls.LoadX509KeyPair(c.files.CertFile, c.files.KeyFile)
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	c.current = &pair
	return nil
}

// get implements tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now().Sub(c.checked) >= checkEvery {
		c.checked = c.now()
		if stamp := c.stampFiles(); stamp != c.stamp {
			if err := c.load(stamp); err != nil {
				c.log.Error("API certificate not reloaded", "error", err)
			} else {
				c.log.Info("API certificate reloaded")
			}
		}
	}
	return c.current, nil
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}
