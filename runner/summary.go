package runner

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// summary says what a sandbox has used, for the end of a job's log: one line for what carries the payload and one for
// what opening it took. It names no part that took nothing worth a figure.
func summary(u sandbox.Usage) []string {
	if len(u.Parts) == 0 {
		return nil
	}
	payload, machinery := u.Sum(true), u.Sum(false)
	line := fmt.Sprintf("used %s of processor: payload %s, machinery %s%s; memory %s at most, %s on average, machinery %s",
		seconds(u.CPU), seconds(payload.CPU), seconds(machinery.CPU), costly(u),
		bytesText(u.MemoryPeak), bytesText(u.MemoryAverage), bytesText(machinery.MemoryAverage))
	line += fmt.Sprintf("; disk %s read, %s written", bytesText(u.Read), bytesText(u.Written))
	if p := u.Pressure; p != nil {
		line += fmt.Sprintf("; waited %s for a processor, %s for memory, %s for disks", seconds(p.CPU.Some), seconds(p.Memory.Some), seconds(p.IO.Some))
	} else {
		line += "; waits are not told by this kernel (no PSI)"
	}
	lines := []string{line}
	var more []string
	if text := stagesText(u.SetUp); text != "" {
		more = append(more, "set-up: "+text)
	}
	if len(u.Copied) > 0 {
		var ways []string
		for _, c := range u.Copied {
			ways = append(ways, fmt.Sprintf("%s %s", c.Way, bytesText(c.Bytes)))
		}
		more = append(more, "copied again: "+strings.Join(ways, ", "))
	}
	if len(more) > 0 {
		lines = append(lines, strings.Join(more, "; "))
	}
	return lines
}

// costly lists the machinery's parts, the most costly first.
func costly(u sandbox.Usage) string {
	parts := slices.DeleteFunc(slices.Clone(u.Parts), func(p sandbox.Part) bool { return p.Payload || p.CPU < 5*time.Millisecond })
	slices.SortStableFunc(parts, func(a, b sandbox.Part) int { return cmp.Compare(b.CPU, a.CPU) })
	var text []string
	for _, p := range parts {
		text = append(text, fmt.Sprintf("%s %s", strings.ReplaceAll(string(p.Name), "_", " "), seconds(p.CPU)))
	}
	if len(text) == 0 {
		return ""
	}
	return " (" + strings.Join(text, ", ") + ")"
}

func stagesText(stages []sandbox.Stage) string {
	var text []string
	for _, s := range stages {
		if s.Took >= time.Millisecond {
			text = append(text, fmt.Sprintf("%s %s", s.Name, seconds(s.Took)))
		}
	}
	return strings.Join(text, ", ")
}

func seconds(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.3f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
