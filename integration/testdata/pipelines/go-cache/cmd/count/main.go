// Command count counts the words of its arguments.
package main

import (
	"encoding/json"
	"os"
	"strings"

	"example.com/app"
)

func main() {
	if err := json.NewEncoder(os.Stdout).Encode(app.Count(strings.Join(os.Args[1:], " "))); err != nil {
		os.Exit(1)
	}
}
