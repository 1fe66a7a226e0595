package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// uses remembers when and how often each manifest was asked for. They are kept in memory and written now and then: a
// crash forgets the last ones.
type uses struct {
	file string

	mu      sync.Mutex
	all     map[string]use // by entryID
	changed bool
}

type use struct {
	Last  time.Time `json:"last"`
	Count int64     `json:"count"`
}

func openUses(file string) (*uses, error) {
	u := &uses{file: file, all: map[string]use{}}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &u.all); err != nil {
		return nil, fmt.Errorf("%s: %w: remove it, and images count as not used so far", file, err)
	}
	return u, nil
}

func (u *uses) add(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.all[id] = use{time.Now(), u.all[id].Count + 1}
	u.changed = true
}

func (u *uses) of(id string) use {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.all[id]
}

// keep forgets all others than those of ids.
func (u *uses) keep(ids map[string]bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id := range u.all {
		if !ids[id] {
			delete(u.all, id)
			u.changed = true
		}
	}
}

// flush writes them if there are new ones.
func (u *uses) flush() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.changed {
		return nil
	}
	text, err := json.Marshal(u.all)
	if err != nil {
		return err
	}
	if err := writeFile(u.file, text); err != nil {
		return fmt.Errorf("write when images were used: %w", err)
	}
	u.changed = false
	return nil
}
