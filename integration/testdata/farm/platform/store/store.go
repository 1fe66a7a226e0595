// Package store keeps events in one file.
package store

import (
	"encoding/json"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"
)

var bucket = []byte("events")

// Event is one thing that happened.
type Event struct {
	ID   uuid.UUID `json:"id" yaml:"id"`
	Text string    `json:"text" yaml:"text"`
}

// Store is safe for concurrent use.
type Store struct{ db *bbolt.DB }

// Open opens the file and makes it if it does not exist.
func Open(file string) (*Store, error) {
	db, err := bbolt.Open(file, 0o600, nil)
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
	return &Store{db}, err
}

// Add stores an event and returns it with its id.
func (s *Store) Add(text string) (Event, error) {
	e := Event{ID: uuid.Must(uuid.NewV7()), Text: text}
	value, err := json.Marshal(e)
	if err != nil {
		return e, err
	}
	return e, s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put(e.ID[:], value) })
}

// All returns the events, oldest first.
func (s *Store) All() (all []Event, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(_, value []byte) error {
			var e Event
			if err := json.Unmarshal(value, &e); err != nil {
				return err
			}
			all = append(all, e)
			return nil
		})
	})
	return all, err
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }
