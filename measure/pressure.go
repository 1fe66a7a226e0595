package measure

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// pressureFile is where the kernel tells how long processes have waited for a processor (PSI,
// Documentation/accounting/psi.rst).
const pressureFile = "/proc/pressure/cpu"

// Pressure returns how long some process or other has waited for a processor since the boot.
func Pressure() (time.Duration, error) {
	f, err := os.Open(pressureFile)
	if err != nil {
		return 0, fmt.Errorf("read the pressure on the processors: %w: boot with psi=1", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return 0, err
	}
	return parsePressure(string(text))
}

// parsePressure reads the total of the line "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234", in microseconds.
func parsePressure(text string) (time.Duration, error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "some" {
			continue
		}
		for _, f := range fields[1:] {
			if value, ok := strings.CutPrefix(f, "total="); ok {
				us, err := strconv.ParseInt(value, 10, 64)
				return time.Duration(us) * time.Microsecond, err
			}
		}
	}
	return 0, fmt.Errorf("%s has no total: %q", pressureFile, text)
}
