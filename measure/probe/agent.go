package probe

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Serve answers requests at a unix socket until the process is killed. One at a time is done, whoever asks.
func Serve(socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o777); err != nil { // the directory says who may come
		return err
	}
	turn := make(chan struct{}, 1)
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			lines := bufio.NewScanner(conn)
			for lines.Scan() {
				turn <- struct{}{}
				reply, err := json.Marshal(handle(lines.Bytes()))
				<-turn
				if err != nil {
					return
				}
				if _, err := conn.Write(append(reply, '\n')); err != nil {
					return
				}
			}
		}()
	}
}

// handle does one request. It runs in a goroutine of its own thread, if the probe wants one.
func handle(line []byte) Answer {
	var r Request
	if err := json.Unmarshal(line, &r); err != nil {
		return Answer{Error: err.Error()}
	}
	var a Answer
	var err error
	if r.Args.Dir != "" {
		if err := os.MkdirAll(r.Args.Dir, 0o755); err != nil {
			return Answer{Error: err.Error()}
		}
	}
	if r.Probe != "" {
		p, ok := Find(r.Probe)
		if !ok {
			return Answer{Error: fmt.Sprintf("no probe %q: the agent is of another version", r.Probe)}
		}
		a, err = p.run(r)
	} else {
		a, err = errand(r)
	}
	if err != nil {
		a.Error, a.NotHere = err.Error(), errors.Is(err, ErrNotHere)
	}
	return a
}

// The errands.
const (
	DoFacts   = "facts"         // what the place is
	DoServe   = "serve-network" // be the server of the network probes at Args.Server; Text is where it is
	DoNames   = "serve-names"   // the same, and answer name servers' port
	DoForward = "forward"       // translate addresses and forward, as a level of nested networks does
	DoPrepare = "prepare"       // make what probes use in Args.Tools
	DoLower   = "lower"         // make files to be copied up in Args.Lower
	DoLimits  = "limits"        // find what the kernel allows, in Args.Dir; Text is JSON of Limits
)

func errand(r Request) (Answer, error) {
	switch r.Do {
	case DoFacts:
		return Answer{Facts: facts(r.Args.Dir)}, nil
	case DoServe, DoNames:
		at, err := serveNetwork(r.Args.Server, r.Do == DoNames)
		return Answer{Text: at}, err
	case DoForward:
		return Answer{}, forward()
	case DoPrepare:
		return Answer{}, writeArchive(r.Args.Tools)
	case DoLower:
		return Answer{}, writeLower(r.Args.Lower)
	case DoLimits:
		limits, err := findLimits(r.Args.Dir)
		if err != nil {
			return Answer{}, err
		}
		text, err := json.Marshal(limits)
		return Answer{Text: string(text)}, err
	}
	return Answer{}, fmt.Errorf("no errand %q: the agent is of another version", r.Do)
}

const lowerFiles = 5000

func writeLower(dir string) error {
	content := make([]byte, 8<<10)
	for i := range lowerFiles {
		if i%100 == 0 {
			if err := os.MkdirAll(filepath.Join(dir, strconv.Itoa(i/100)), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i/100), strconv.Itoa(i)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// forward makes the network namespace a router that translates addresses, as an engine's bridge is one.
func forward() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table ip measure {\n chain post {\n type nat hook postrouting priority srcnat; policy accept;\n oifname \"eth0\" masquerade\n }\n}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}
