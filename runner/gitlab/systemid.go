package gitlab

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/atomicwriter"

	"github.com/runnerd/runnerd/sandbox"
)

// systemIDFile has the system id, in the directory of the registrations.
const systemIDFile = ".system-id"

// machineIDFiles have the machine's id (machine-id(5)).
var machineIDFiles = [...]string{"/etc/machine-id", "/var/lib/dbus/machine-id"}

// systemID is the machine's as GitLab tells the machines of one runner apart, made once and kept. It is derived from
// the machine's id as gitlab-runner does ("s_" and 12 hexadecimal digits), but from the directory too: it is not that
// of a gitlab-runner on this machine, nor that of another runnerd. Without a machine's id it is random ("r_").
func systemID(dir string) (string, error) {
	file := filepath.Join(dir, systemIDFile)
	text, err := os.ReadFile(file)
	if err == nil {
		id := string(bytes.TrimSpace(text))
		if !systemIDForm.MatchString(id) {
			return "", fmt.Errorf("%s: %q is no system id: remove the file", file, cut(id))
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := newSystemID(dir)
	return id, errors.Join(atomicwriter.WriteFile(file, []byte(id+"\n"), 0o600), syncDir(dir))
}

func newSystemID(dir string) string {
	for _, file := range machineIDFiles {
		machine, err := os.ReadFile(file)
		if machine = bytes.TrimSpace(machine); err != nil || len(machine) == 0 {
			continue
		}
		mac := hmac.New(sha256.New, machine)
		_, _ = mac.Write([]byte("runnerd " + dir)) // never fails
		return "s_" + hex.EncodeToString(mac.Sum(nil))[:12]
	}
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return "r_" + hex.EncodeToString(b[:])
}

// DefaultNesting is that of jobs whose runner does not say.
func DefaultNesting() sandbox.Nesting { return sandbox.Nesting{sandbox.Container} }
