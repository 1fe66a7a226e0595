package main

import (
	"context"
	"path/filepath"

	"github.com/runnerd/runnerd/runner/gitlab"
)

// runnersDir is where the registrations are kept.
func runnersDir(stateDir string) string { return filepath.Join(stateDir, "runners") }

// startEnrolment opens the registrations and keeps their tokens fresh.
func (a *assembly) startEnrolment(ctx context.Context) error {
	known, err := gitlab.OpenRegistrations(runnersDir(a.config.StateDir))
	if err != nil {
		return err
	}
	a.contacts = &gitlab.Contacts{}
	a.enrolment = gitlab.NewEnrolment(gitlab.EnrolConfig{
		Runners: known, Contacts: a.contacts, Dial: forgeOf(enrolInfo(a.config.Terminal.Listen != ""), a.metrics.Forge),
		Log: a.log.With("component", "gitlab"),
	})
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	a.later(func(context.Context) error {
		stop()
		<-done
		return nil
	})
	go func() {
		defer close(done)
		a.enrolment.KeepTokens(keeping)
	}()
	return nil
}
