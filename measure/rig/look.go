package rig

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/measure/probe"

	"golang.org/x/sys/unix"
)

// look asks all places of the series "depth" what they are, and refuses those that are not what is to be measured.
func (r *Rig) look(ctx context.Context) error {
	for _, p := range r.chain {
		answer, err := p.agent.Ask(ctx, probe.Request{Do: probe.DoFacts, Args: p.args})
		if err != nil {
			return fmt.Errorf("look at %s: %w", p.name, err)
		}
		facts := measure.PlaceFacts{Name: p.name, Depth: p.depth}
		text, err := json.Marshal(answer.Facts)
		if err == nil {
			err = json.Unmarshal(text, &facts)
		}
		if err != nil {
			return err
		}
		pid, err := p.agent.PID()
		if err != nil {
			return err
		}
		if facts.PIDs, err = pidsOf(pid); err != nil {
			return err
		}
		if err := check(facts); err != nil {
			return fmt.Errorf("%s is not what is to be measured: %w", p.name, err)
		}
		r.facts = append(r.facts, facts)
		if first := r.facts[0].Program; facts.Program != first {
			return fmt.Errorf("%s runs another program than the machine: %s, not %s", p.name, facts.Program, first)
		}
	}
	return nil
}

// pidsOf are a process's ids in all pid namespaces from ours to its own (proc(5), NSpid).
func pidsOf(pid int) ([]string, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	for scan := bufio.NewScanner(bytes.NewReader(status)); scan.Scan(); {
		if ids, ok := strings.CutPrefix(scan.Text(), "NSpid:"); ok {
			return strings.Fields(ids), nil
		}
	}
	return nil, fmt.Errorf("the kernel does not say in how many pid namespaces process %d is", pid)
}

// check holds that a place is as deep as it says, on an overlay of the kernel's, and has a veth for its network.
func check(f measure.PlaceFacts) error {
	// Nested engines each add the pid namespace of the container that they are in.
	if want := f.Depth + 1; len(f.PIDs) != want {
		return fmt.Errorf("it is in %d pid namespaces, not in %d", len(f.PIDs), want)
	}
	if f.Depth == 0 {
		return nil
	}
	if f.Root.FS != "overlay" || f.Dir.FS != "overlay" {
		return fmt.Errorf("its root file system is %s and its files are on %s, not on an overlay of the kernel's (vfs, or fuse-overlayfs)", f.Root.FS, f.Dir.FS)
	}
	if f.UIDMap == "" || strings.HasPrefix(f.UIDMap, "0 0 ") {
		return fmt.Errorf("it is in no user namespace of its own: %q", f.UIDMap)
	}
	for name := range f.Interfaces {
		if strings.HasPrefix(name, "tap") || strings.HasPrefix(name, "tun") {
			return fmt.Errorf("its network is %s, a program's (slirp4netns, pasta), not the kernel's", name)
		}
	}
	if f.Interfaces["eth0"] == 0 {
		return fmt.Errorf("it has no eth0 among %v", f.Interfaces)
	}
	return nil
}

// Limits finds what the kernel allows, by trying.
func (r *Rig) Limits(ctx context.Context) (limits probe.Limits, err error) {
	l, err := r.startLocal(ctx, "limits", unix.CLONE_NEWNS, "serve", "-storage", probe.Raw, "-dir", filepath.Join(r.disk, "limits"))
	if err != nil {
		return limits, err
	}
	answer, err := l.Ask(ctx, probe.Request{Do: probe.DoLimits, Args: probe.Args{Dir: filepath.Join(r.disk, "limits", "tried")}})
	if err == nil {
		err = json.Unmarshal([]byte(answer.Text), &limits)
	}
	if closing := l.Close(); err == nil {
		err = closing
	}
	return limits, err
}
