package archive

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// futimens is futimens(3): utimensat(2) with a descriptor and no path, which package unix has no way to say.
func futimens(fd int, times [2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
