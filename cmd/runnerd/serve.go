package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/sandbox/engine"
)

// stopTimeout bounds what must be done after the last job has ended.
const stopTimeout = time.Minute

func (a *app) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Start the daemon",
		Long: `Start the daemon, as root. It runs until it gets SIGTERM or SIGINT; it then takes no new jobs, gives those that run
the time configured as drain, and cancels them. A second signal cancels them at once, a third ends the daemon as
it is; what it leaves is removed at the next start.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return usage(errors.New("the daemon must be started as root: use sudo; only it is root, jobs are not"))
			}
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
			defer signal.Stop(signals)
			return serve(cmd.Context(), c, newLog(a.stderr, c.Log), signals, assemble)
		},
	}
	return cmd
}

// daemon is what stands behind the socket.
type daemon struct {
	// Serve serves the API until ctx ends.
	Serve func(ctx context.Context, l net.Listener) error
	// Run runs jobs until ctx ends, and then those that it has to their end, for as long as drain allows.
	Run func(ctx context.Context) error
	// Drain makes the API refuse new jobs.
	Drain func()
	// Abort cancels all jobs.
	Abort func()
	// Close ends everything else, in the reverse order of the start.
	Close func(ctx context.Context) error
}

// serve is the daemon's life: lock, engines, socket, the rest; and back.
func serve(ctx context.Context, c *config.Config, log *slog.Logger, signals <-chan os.Signal,
	assemble func(context.Context, *config.Config, engine.Set, *slog.Logger) (*daemon, error),
) (err error) {
	for _, dir := range []string{c.StateDir, c.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil { // searchable by the sandboxes' ids
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	lock, err := lockState(c.StateDir)
	if err != nil {
		return err
	}
	defer lock.release()
	engines, err := checkEngines(ctx, c, log)
	if err != nil {
		return err
	}
	socket, err := listen(c.Socket)
	if err != nil {
		return err
	}
	defer func() { _ = socket.Close() }()

	starting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	started := make(chan struct{})
	go func() { // a signal during the start ends it
		select {
		case sig := <-signals:
			cancel(fmt.Errorf("stopped by %s while starting", sig))
		case <-started:
		}
	}()
	d, err := assemble(starting, c, engines, log)
	close(started)
	if err != nil {
		if cause := context.Cause(starting); cause != nil {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		return err
	}
	return d.live(ctx, starting, socket, signals, log)
}

// live serves and runs jobs until a signal.
func (d *daemon) live(ctx, starting context.Context, socket net.Listener, signals <-chan os.Signal, log *slog.Logger) error {
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	running, drain := context.WithCancelCause(ctx)
	defer drain(nil)
	served, ran := make(chan error, 1), make(chan error, 1)
	go func() { served <- d.Serve(serving, socket) }()
	go func() { ran <- d.Run(running) }()
	notify(log, "READY=1\nSTATUS=Taking jobs")
	log.Info("runnerd is ready", "version", versionInfo().Version, "socket", socket.Addr().String(), "pid", os.Getpid())

	var errs []error
	stopping := false
	stop := func(why string, cause error) {
		stopping = true
		log.Info("runnerd stops: waiting for jobs", "reason", why)
		notify(log, "STOPPING=1\nSTATUS=Waiting for jobs")
		d.Drain()
		drain(cause)
	}
	if cause := context.Cause(starting); cause != nil {
		stop(cause.Error(), cause)
	}
	for done := false; !done; {
		select {
		case sig := <-signals:
			switch {
			case !stopping:
				stop(sig.String(), fmt.Errorf("stopped by %s", sig))
			default:
				log.Warn("a second signal: cancelling all jobs", "signal", sig.String())
				go d.Abort()
				go func(third <-chan os.Signal) {
					<-third
					log.Error("a third signal: ending as it is")
					os.Exit(exitErrored)
				}(signals)
				signals = nil
			}
		case err := <-served:
			errs = append(errs, fmt.Errorf("serve the API: %w", err))
			served = nil
			if !stopping {
				stop("the API has ended", err)
			}
		case err := <-ran:
			if !stopping {
				errs = append(errs, fmt.Errorf("run jobs: %w", err))
			}
			done = true
		}
	}
	// The clients are told how their jobs ended before the socket is closed.
	stopServing()
	if served != nil {
		if err := <-served; err != nil {
			errs = append(errs, fmt.Errorf("serve the API: %w", err))
		}
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	errs = append(errs, d.Close(closing))
	log.Info("runnerd has stopped")
	return errors.Join(errs...)
}

// checkEngines loads the engines and refuses those with a known way out of the sandbox.
func checkEngines(ctx context.Context, c *config.Config, log *slog.Logger) (engine.Set, error) {
	set, err := engine.Load(c.EnginesDir)
	if err != nil {
		return set, err
	}
	if err := set.Verify(ctx); err != nil {
		return set, err
	}
	var refused []error
	for _, f := range set.Advisories() {
		if c.AllowVulnerableEngines {
			log.Warn("a vulnerable engine is allowed by allow_vulnerable_engines", "finding", f.Error())
			continue
		}
		refused = append(refused, f)
	}
	return set, errors.Join(refused...)
}
