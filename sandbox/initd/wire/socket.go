package wire

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// RightsSpace is the room that Receive needs for the descriptors of one packet, in bytes.
func RightsSpace() int { return unix.CmsgSpace(4 * MaxFiles) }

// scmPidfd is SCM_PIDFD (linux/include/linux/socket.h): a descriptor that comes uninvited when the other
// side, which may share the socket, has set SO_PASSPIDFD on it.
const scmPidfd = 4

// Send writes one packet with its files. It does not block when flags has MSG_DONTWAIT.
func Send(fd int, packet []byte, files []int, flags int) error {
	if len(packet) > MaxPacket {
		return unix.EMSGSIZE
	}
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	for {
		err := unix.Sendmsg(fd, packet, rights, nil, unix.MSG_NOSIGNAL|flags)
		if err != unix.EINTR {
			return err
		}
	}
}

// Receive reads one packet with its files, which are closed on exec; they are the caller's even when the
// packet turns out to be malformed. A packet or its files that do not fit give EMSGSIZE. n is 0 at the end.
func Receive(fd int, packet, rights []byte, flags int) (n int, files []int, err error) {
	var rightsLen, got int
	for {
		n, rightsLen, got, _, err = unix.Recvmsg(fd, packet, rights, unix.MSG_CMSG_CLOEXEC|flags)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, nil, err
	}
	if rightsLen > 0 {
		files = takeFiles(rights[:rightsLen])
	}
	if got&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		CloseAll(files)
		return 0, nil, unix.EMSGSIZE
	}
	return n, files, nil
}

// takeFiles returns the descriptors that came with a packet, and closes those that nobody sent.
func takeFiles(rights []byte) (files []int) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == scmPidfd {
			m.Header.Type = unix.SCM_RIGHTS // it looks the same
			if fds, err := unix.ParseUnixRights(&m); err == nil {
				CloseAll(fds)
			}
			continue
		}
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			files = append(files, fds...)
		}
	}
	return files
}

// CloseAll closes descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Memfile puts data into a sealed memory file, to be sent beside a packet.
func Memfile(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("runnerd-process", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("runnerd-process", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "process")
	if _, err := file.Write(data); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(os.NewSyscallError("seal memory file", err), file.Close())
	}
	return file, nil
}

// ReadMemfile reads a memory file of at most MaxSpec bytes.
func ReadMemfile(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Size > MaxSpec {
		return nil, unix.E2BIG
	}
	data := make([]byte, st.Size)
	for done := 0; done < len(data); {
		n, err := unix.Pread(fd, data[done:], int64(done))
		if err != nil && err != unix.EINTR {
			return nil, err
		}
		if err == nil && n == 0 {
			return data[:done], nil
		}
		done += max(n, 0)
	}
	return data, nil
}
