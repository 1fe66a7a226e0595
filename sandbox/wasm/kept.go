package wasm

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Kept is a module that a Store keeps compiled.
type Kept struct {
	Digest   string // SHA-256, hex
	Bytes    int64
	Created  time.Time
	LastUsed time.Time
}

// Kept lists what is kept.
func (s *Store) Kept(context.Context) ([]Kept, error) {
	found, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*", "*", "*"))
	var all []Kept
	for _, path := range found {
		digest := filepath.Base(filepath.Dir(path))
		info, statErr := os.Stat(path)
		used, usedErr := os.Stat(filepath.Dir(path))
		if isDigest(digest) && statErr == nil && usedErr == nil {
			all = append(all, Kept{Digest: digest, Bytes: info.Size(), Created: info.ModTime(), LastUsed: used.ModTime()})
		}
	}
	return all, err
}

func isDigest(text string) bool {
	sum, err := hex.DecodeString(text)
	return err == nil && len(sum) == 32
}

// Remove removes modules by their digests and says how many bytes that has freed. Sandboxes that have one go on.
func (s *Store) Remove(_ context.Context, digests []string) (freed int64, err error) {
	for _, digest := range digests {
		if !isDigest(digest) {
			continue
		}
		found, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "*", digest))
		for _, dir := range found {
			size := int64(0)
			_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
					size += info.Size()
				}
				return nil
			})
			if failed := os.RemoveAll(dir); failed != nil {
				err = errors.Join(err, failed)
				continue
			}
			freed += size
		}
	}
	return freed, err
}
