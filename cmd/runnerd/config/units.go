package config

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/sandbox"
)

// Size is a number of bytes; in text 512MiB, 1.5GiB, 10GB, or a plain number.
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{ // the longer suffix first; the first of a size is the one that is written
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"Ti", 1 << 40},
	{"Gi", 1 << 30},
	{"Mi", 1 << 20},
	{"Ki", 1 << 10},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"kB", 1e3},
	{"KB", 1e3},
	{"t", 1 << 40},
	{"g", 1 << 30},
	{"m", 1 << 20},
	{"k", 1 << 10}, // as docker run -m has them
	{"T", 1 << 40},
	{"G", 1 << 30},
	{"M", 1 << 20},
	{"K", 1 << 10},
	{"B", 1},
}

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := strings.TrimSpace(string(text)), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil && n >= 0 && n <= math.MaxInt64/unit {
		*s = Size(n * unit)
		return nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(f) || f < 0 || f*float64(unit) >= math.MaxInt64 || strings.ContainsAny(number, "eExXpP_") {
		return fmt.Errorf("%q is not a size: write it like 512MiB or 2GiB", text)
	}
	*s = Size(f * float64(unit))
	return nil
}

// MarshalText writes a size in the largest unit that has no fraction.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s > 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Share is a part of a whole; in text a percentage or a size: 85% or 20GiB.
type Share budget.Share

// UnmarshalText reads a share.
func (s *Share) UnmarshalText(text []byte) error {
	number, percent := strings.CutSuffix(strings.TrimSpace(string(text)), "%")
	if !percent {
		var size Size
		if err := size.UnmarshalText(text); err != nil {
			return fmt.Errorf("%q is neither a percentage nor a size: write it like 85%% or 20GiB", text)
		}
		*s = Share{Bytes: int64(size)}
		return nil
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || math.IsNaN(f) || f < 0 || f > 100 || strings.ContainsAny(number, "eExXpP_") {
		return fmt.Errorf("%q is not a percentage: write it like 85%%", text)
	}
	*s = Share{Percent: f}
	return nil
}

// MarshalText writes a share.
func (s Share) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Share) String() string {
	if s.Percent > 0 {
		return strconv.FormatFloat(s.Percent, 'f', -1, 64) + "%"
	}
	return Size(s.Bytes).String()
}

// CPU is a number of processors in thousandths; in text 1.5 or 1500m.
type CPU sandbox.MilliCPU

// UnmarshalText reads a number of processors.
func (c *CPU) UnmarshalText(text []byte) error {
	number, milli := strings.CutSuffix(strings.TrimSpace(string(text)), "m")
	f, err := strconv.ParseFloat(number, 64)
	if !milli {
		f *= 1000
	}
	if err != nil || math.IsNaN(f) || f < 0 || f > 1e9 || strings.ContainsAny(number, "eExXpP_") || f != math.Trunc(f) && milli {
		return fmt.Errorf("%q is not a number of processors: write it like 1.5 or 500m", text)
	}
	*c = CPU(math.Round(f))
	return nil
}

// MarshalText writes a number of processors.
func (c CPU) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

func (c CPU) String() string { return strconv.FormatFloat(float64(c)/1000, 'f', -1, 64) }

// Duration is a time.Duration; in text 1h30m, and 7d for days.
type Duration time.Duration

// UnmarshalText reads a duration, which is not negative.
func (d *Duration) UnmarshalText(text []byte) error {
	rest, total := string(text), time.Duration(0)
	if days, after, ok := strings.Cut(rest, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return durationError(text)
		}
		rest, total = after, time.Duration(n)*24*time.Hour
	}
	if rest != "" {
		v, err := time.ParseDuration(rest)
		if err != nil || v < 0 {
			return durationError(text)
		}
		total += v
	}
	if len(text) == 0 || total < 0 {
		return durationError(text)
	}
	*d = Duration(total)
	return nil
}

func durationError(text []byte) error {
	return fmt.Errorf("%q is not a duration: write it like 90s, 1h30m or 7d", text)
}

// MarshalText writes a duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string {
	v := time.Duration(d)
	const day = 24 * time.Hour
	switch {
	case v >= 2*day && v%day == 0:
		return strconv.FormatInt(int64(v/day), 10) + "d"
	case v >= time.Hour && v%time.Hour == 0:
		return strconv.FormatInt(int64(v/time.Hour), 10) + "h"
	case v >= time.Minute && v%time.Minute == 0:
		return strconv.FormatInt(int64(v/time.Minute), 10) + "m"
	}
	return v.String()
}

// FileMode is permissions in octal.
type FileMode os.FileMode

// UnmarshalText reads octal permissions.
func (m *FileMode) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(strings.TrimPrefix(string(text), "0o"), 8, 32)
	if err != nil || v > 0o777 {
		return fmt.Errorf("%q is not a file mode: write it in octal, like \"0660\"", text)
	}
	*m = FileMode(v)
	return nil
}

// MarshalText writes octal permissions.
func (m FileMode) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%04o", uint32(m)), nil }
