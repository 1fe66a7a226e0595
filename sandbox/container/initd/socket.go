package initd

import (
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// send writes one packet with its files.
func send(fd int, v any, files ...int) error {
	packet, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(packet) > maxPacket {
		return fmt.Errorf("packet of %d bytes: at most %d", len(packet), maxPacket)
	}
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	for {
		err := unix.Sendmsg(fd, packet, rights, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// receive reads one packet with its files, which are closed on exec.
func receive(fd int, packet, rights []byte) (n int, files []int, err error) {
	var rightsLen, flags int
	for {
		n, rightsLen, flags, _, err = unix.Recvmsg(fd, packet, rights, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, nil, err
	}
	if rightsLen > 0 {
		messages, err := unix.ParseSocketControlMessage(rights[:rightsLen])
		if err == nil {
			for _, m := range messages {
				if fds, err := unix.ParseUnixRights(&m); err == nil {
					files = append(files, fds...)
				}
			}
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		closeAll(files)
		return 0, nil, fmt.Errorf("packet too large")
	}
	return n, files, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// memfile puts data into a sealed memory file.
func memfile(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("runnerd-process", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), "process")
	if _, err := file.Write(data); err != nil {
		file.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		file.Close()
		return nil, fmt.Errorf("seal memory file: %w", err)
	}
	return file, nil
}
