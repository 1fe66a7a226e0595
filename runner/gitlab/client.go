package gitlab

import "fmt"

// StatusError is an answer of the forge that is no success.
type StatusError struct {
	Status    int
	Message   string
	RequestID string
}

func (e *StatusError) Error() string { return fmt.Sprintf("%s (HTTP status %d)", e.Message, e.Status) }
