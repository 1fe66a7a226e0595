package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/runnerd/runnerd/runner"
)

// Event is a change of a job's state.
type Event struct {
	Time   time.Time    `json:"time"`
	State  runner.State `json:"state" enum:"queued,waiting,opening,running,closing,finished"`
	Detail string       `json:"detail,omitempty" doc:"Why, for people; of finished its outcome and message."`
}

func (s *Server) eventRoutes() {
	if s.cfg.Events == nil {
		return
	}
	huma.Register(s.api, s.operation(http.MethodGet, "/v1/jobs/{id}/events", "list-job-events", "List the changes of a job's state", 404),
		func(ctx context.Context, in *jobID) (*body[[]Event], error) {
			all, err := s.cfg.Events(ctx, in.ID)
			if err != nil {
				return nil, problem(err)
			}
			events := make([]Event, 0, len(all))
			for _, e := range all {
				events = append(events, Event(e))
			}
			return &body[[]Event]{events}, nil
		})
}
