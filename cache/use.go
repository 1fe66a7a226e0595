package cache

import (
	"context"
	"encoding/json"
	"strings"
	"time"
)

// use is how an entry has been used. It is kept beside the index, so that reading an entry does not write it.
// Of two daemons that use one entry at once one may be forgotten.
type use struct {
	Uses int64     `json:"uses"`
	Last time.Time `json:"last"`
}

// Used counts a use of an entry, which keeps it.
func (s *Store) Used(ctx context.Context, e *Entry) error {
	s.mu.Lock()
	u, known := s.uses[e.path]
	s.mu.Unlock()
	if !known {
		u = s.readUse(ctx, e.path)
	}
	s.mu.Lock()
	if now, ok := s.uses[e.path]; ok {
		u = now
	}
	u.Uses, u.Last = u.Uses+1, s.now().UTC()
	s.uses[e.path] = u
	s.mu.Unlock()
	text, err := json.Marshal(u)
	if err != nil {
		return err
	}
	return s.writeObject(ctx, usePath(e.path), text)
}

// readUse returns the zero use of what was never used.
func (s *Store) readUse(ctx context.Context, path string) (u use) {
	if text, err := s.bucket.ReadAll(ctx, usePath(path)); err == nil {
		_ = json.Unmarshal(text, &u)
	}
	return u
}

func usePath(entry string) string {
	entry = strings.Replace(entry, artifactsDir, usesDir, 1)
	return strings.Replace(entry, entriesDir, usesDir, 1)
}
