// Command ingest takes events over HTTP, one a request.
package main

import (
	"io"
	"log"
	"net/http"

	"example.com/platform/store"
)

func main() {
	s, err := store.Open("events.db")
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("POST /events", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		e, err := s.Add(string(text))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		io.WriteString(w, e.ID.String()+"\n")
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
