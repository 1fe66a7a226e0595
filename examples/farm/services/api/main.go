// Command api is one of the farm's services.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/google/uuid"
)

var version = "unknown"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "version" {
		fmt.Println("api", version)
		return
	}
	instance := uuid.NewString()
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"service": "api", "version": version, "instance": instance})
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
