// Command query prints all events as YAML.
package main

import (
	"log"
	"os"

	"gopkg.in/yaml.v3"

	"example.com/platform/store"
)

func main() {
	s, err := store.Open("events.db")
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	all, err := s.All()
	if err != nil {
		log.Fatal(err)
	}
	if err := yaml.NewEncoder(os.Stdout).Encode(all); err != nil {
		log.Fatal(err)
	}
}
