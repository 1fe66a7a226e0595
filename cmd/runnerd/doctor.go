package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
)

// verdict is how a check ended.
type verdict string

const (
	ok   verdict = "ok"
	warn verdict = "warn"
	fail verdict = "fail"
)

// finding is what a check found.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Found   string  `json:"found"`
	Mend    string  `json:"mend,omitempty"` // a command, or a sentence
}

// check looks at one thing. It leaves nothing behind.
type check struct {
	name string
	run  func(ctx context.Context, c *config.Config) finding
}

func good(format string, args ...any) finding {
	return finding{Verdict: ok, Found: fmt.Sprintf(format, args...)}
}

func bad(v verdict, mend, format string, args ...any) finding {
	return finding{Verdict: v, Found: fmt.Sprintf(format, args...), Mend: mend}
}

// checkTimeout bounds each check.
const checkTimeout = 20 * time.Second

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine lacks",
		Long: `Look whether this machine can run the daemon and its sandboxes, and say how to mend what is wrong. Run it as root:
some checks try what the sandboxes need, and leave nothing behind. It exits with 1 if something must be mended.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			return a.doctor(cmd.Context(), c, checks(), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) doctor(ctx context.Context, c *config.Config, checks []check, asJSON bool) error {
	findings := []finding{}
	counts := map[verdict]int{}
	width := 0
	for _, k := range checks {
		width = max(width, utf8.RuneCountInString(k.name))
	}
	for _, k := range checks {
		f := examine(ctx, c, k)
		findings = append(findings, f)
		counts[f.Verdict]++
		if !asJSON {
			printFinding(a.stdout, f, width)
		}
	}
	if asJSON {
		if err := writeJSON(a.stdout, findings); err != nil {
			return err
		}
	} else {
		_, _ = fmt.Fprintf(a.stdout, "\n%d ok, %d warnings, %d failures\n", counts[ok], counts[warn], counts[fail])
	}
	if counts[fail] > 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}

func examine(ctx context.Context, c *config.Config, k check) (f finding) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			f = bad(fail, "please report this", "the check itself failed: %v", p)
		}
		f.Check = k.name
	}()
	return k.run(ctx, c)
}

func printFinding(w io.Writer, f finding, width int) {
	sign := map[verdict]string{ok: paint(w, green, "✓"), warn: paint(w, yellow, "!"), fail: paint(w, red, "✗")}[f.Verdict]
	blanks := strings.Repeat(" ", width-utf8.RuneCountInString(f.Check))
	_, _ = fmt.Fprintf(w, "%s %s%s  %s\n", sign, f.Check, blanks, strings.ReplaceAll(f.Found, "\n", "; "))
	if f.Mend != "" && f.Verdict != ok {
		for line := range strings.SplitSeq(f.Mend, "\n") {
			_, _ = fmt.Fprintf(w, "  %s  → %s\n", strings.Repeat(" ", width), line)
		}
	}
}
