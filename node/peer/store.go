package peer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// stores are Raft's files: <data_dir>/raft/raft.db with the log, term and vote, and <data_dir>/raft/snapshots.
type stores struct {
	log       *raftboltdb.BoltStore
	snapshots raft.SnapshotStore
}

// lockTimeout is how long another process may hold the log before opening gives up.
const lockTimeout = 5 * time.Second

// retainSnapshots are kept, so that an older one is there when the newest turns out to be damaged.
const retainSnapshots = 3

func openStores(dataDir string, logger hclog.Logger) (*stores, error) {
	dir := filepath.Join(dataDir, "raft")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make raft directory: %w", err)
	}
	if err := removeTemporary(filepath.Join(dir, "snapshots")); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "raft.db")
	log, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: lockTimeout,
			// The free list is rewritten at every commit otherwise, and it is long after a burst. The price is a scan at open.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open log: %s is locked by another process for %v; look for another gateway with the same data_dir: %w", path, lockTimeout, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, retainSnapshots, logger)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots: %w", err), log.Close())
	}
	return &stores{log: log, snapshots: snapshots}, nil
}

// removeTemporary deletes what a crash during a snapshot left behind; the snapshot store itself never does.
func removeTemporary(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove snapshot: %w", err)
			}
		}
	}
	return nil
}

// hasData reports whether Raft has ever run or been bootstrapped on these files.
func (s *stores) hasData() (bool, error) {
	has, err := raft.HasExistingState(s.log, s.log, s.snapshots)
	if err != nil {
		return false, fmt.Errorf("look for data: %w", err)
	}
	return has, nil
}

// bootstrap writes the first configuration unless it is there. Raft's own bootstrap writes a term, then the configuration; after
// a crash in between it refuses to go on, and Raft would start with no configuration at all. The entry is the same on every voter, so
// writing it late is as good as in time.
func (s *stores) bootstrap(c *raft.Config, first raft.Configuration) error {
	has, err := s.hasData()
	if err != nil {
		return err
	}
	if !has {
		if err := raft.BootstrapCluster(c, s.log, s.log, s.snapshots, nil, first); err != nil {
			return fmt.Errorf("bootstrap raft: %w", err)
		}
		return nil
	}
	last, err := s.log.LastIndex()
	if err != nil {
		return fmt.Errorf("look for data: %w", err)
	}
	snapshots, err := s.snapshots.List()
	if err != nil {
		return fmt.Errorf("look for data: %w", err)
	}
	if last > 0 || len(snapshots) > 0 {
		return nil
	}
	if err := s.log.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(first)}); err != nil {
		return fmt.Errorf("bootstrap raft: %w", err)
	}
	return nil
}

func (s *stores) close() error {
	if err := s.log.Close(); err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}
