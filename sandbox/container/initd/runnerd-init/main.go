// Command runnerd-init is the first process of every container of a sandbox. See package initd.
package main

import "github.com/runnerd/runnerd/sandbox/container/initd"

func main() { initd.Main() }
