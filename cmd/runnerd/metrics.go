package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/runnerd/runnerd/scope"
)

// startMetrics adds what the parts of the daemon say of themselves, and serves all of it if that is configured.
func (a *assembly) startMetrics(ctx context.Context) error {
	m := a.metrics
	m.Jobs(a.queue.Count)
	m.Admission(a.runner.Admission)
	m.Pool(a.pool.Ready)
	m.Disk(a.disk.Figures)
	m.Runners(a.enrolment.Runners.List, a.contacts.Of)
	m.Builders(func() map[scope.Trust][2]int {
		n := map[scope.Trust][2]int{}
		for trust, c := range a.workers.Count() {
			n[trust] = [2]int{c.Busy, c.Idle}
		}
		return n
	})
	address := a.config.Metrics.Address
	if address == "" {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serve the metrics: %w: stop who has the port or set metrics.address", err)
	}
	a.later(serveMetrics(l, m.Handler()))
	a.log.Info("metrics are served", "address", l.Addr().String())
	return nil
}

// serveMetrics serves /metrics until what it returns is called.
func serveMetrics(l net.Listener, metrics http.Handler) (stop func(context.Context) error) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	return func(ctx context.Context) error {
		err := server.Shutdown(ctx)
		if err != nil {
			err = server.Close()
		}
		<-served
		return err
	}
}
