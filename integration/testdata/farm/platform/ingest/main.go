// Command ingest takes events from its standard input, one a line, and prints their ids.
package main

import (
	"bufio"
	"fmt"
	"log"
	"os"

	"example.com/platform/store"
)

func main() {
	s, err := store.Open("events.db")
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		e, err := s.Add(lines.Text())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.ID)
	}
}
