// Command logfilter is a log filter (plugins.log_filter): it hides what looks like an e-mail address.
package main

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
)

var address = regexp.MustCompile(`[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}`)

func main() {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadString('\n')
		if _, failed := out.WriteString(address.ReplaceAllString(line, "[ADDRESS]")); failed != nil {
			fmt.Fprintln(os.Stderr, failed)
			os.Exit(1)
		}
		if in.Buffered() == 0 || err != nil {
			if failed := out.Flush(); failed != nil {
				os.Exit(1)
			}
		}
		if err != nil {
			return
		}
	}
}
