package gitlabtest

import (
	"net/http"
)

func (s *Server) pages(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }
