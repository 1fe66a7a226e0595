package runner

import (
	"io/fs"
	"syscall"
)

// diskSize is how much of the disk a file takes: a log's file has holes.
func diskSize(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
