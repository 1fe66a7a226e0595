package main

import (
	"runtime"
	"sync"
)

// spareThreads is how many system calls that take long the init can be in at once without a new thread.
const spareThreads = 6

// reserveThreads makes the threads that the init will need. Go's runtime makes one when it lacks one, and ends
// the program when the kernel refuses; in a sandbox that has as many processes as it may have, it does. Idle
// threads are kept for good (runtime/proc.go, stopm).
func reserveThreads() {
	var made, release sync.WaitGroup
	release.Add(1)
	for range spareThreads {
		made.Add(1)
		go func() {
			runtime.LockOSThread() // waiting, it keeps its thread from all others
			defer runtime.UnlockOSThread()
			made.Done()
			release.Wait()
		}()
	}
	made.Wait()
	release.Done()
}
