package ciyaml

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// units are those of GitLab's durations; a month has 30 days there, and a year 365.25.
var units = map[string]time.Duration{
	"s": time.Second, "sec": time.Second, "second": time.Second,
	"m": time.Minute, "min": time.Minute, "minute": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hour": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour,
	"w": 7 * 24 * time.Hour, "wk": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour,
	"mo": 30 * 24 * time.Hour, "mon": 30 * 24 * time.Hour, "month": 30 * 24 * time.Hour,
	"y": 8766 * time.Hour, "yr": 8766 * time.Hour, "year": 8766 * time.Hour,
}

var durationPart = regexp.MustCompile(`^(\d+(?:\.\d+)?)\s*([a-z]*)[\s,]*(?:and\s+)?`)

// parseDuration reads "1h 30m", "2 hrs 20 min", "3 weeks and 2 days", "90": seconds if there is no unit.
func parseDuration(s string) (time.Duration, bool) {
	s = strings.ToLower(strings.TrimSpace(s))
	if s == "" || len(s) > 100 {
		return 0, false
	}
	total := 0.0
	for s != "" {
		m := durationPart.FindStringSubmatch(s)
		if m == nil {
			return 0, false
		}
		unit := time.Second
		if m[2] != "" {
			var ok bool
			if unit, ok = units[m[2]]; !ok {
				if unit, ok = units[strings.TrimSuffix(m[2], "s")]; !ok {
					return 0, false
				}
			}
		}
		count, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return 0, false
		}
		total += count * float64(unit)
		s = s[len(m[0]):]
	}
	if total > math.MaxInt64/2 {
		return 0, false
	}
	return time.Duration(total).Truncate(time.Second), true
}

func (p *parser) duration(n *node, what string) time.Duration {
	s := p.str(n, what)
	if s == "" {
		return 0
	}
	d, ok := parseDuration(s)
	if !ok {
		p.fail(n.at, "%s should be a duration, such as 90 minutes or 1h 30m", what)
	}
	return d
}
