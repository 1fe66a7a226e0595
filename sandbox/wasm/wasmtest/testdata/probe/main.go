// Command probe is a module that does one thing of those that modules do, and says what came of it.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		return
	}
	if err := probe(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func probe(what string, args []string) error {
	switch what {
	case "echo":
		fmt.Println(strings.Join(args, " "))
		fmt.Fprintln(os.Stderr, "err")
	case "exit":
		code, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		os.Exit(code)
	case "cat":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "pwd":
		dir, err := os.Getwd()
		fmt.Println(dir)
		return err
	case "read":
		text, err := os.ReadFile(args[0])
		fmt.Print(string(text))
		return err
	case "write":
		return os.WriteFile(args[0], []byte(args[1]), 0o644)
	case "ls":
		entries, err := os.ReadDir(args[0])
		for _, e := range entries {
			fmt.Println(e.Name())
		}
		return err
	case "files": // all that one does with files
		return files(args[0])
	case "spin":
		fmt.Println("ready")
		for n := 0; ; n++ {
			if n < 0 {
				fmt.Println(n)
			}
		}
	case "alloc":
		mib, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		kept := make([][]byte, mib)
		for i := range kept {
			kept[i] = make([]byte, 1<<20)
			for at := 0; at < len(kept[i]); at += 4096 {
				kept[i][at] = 1 // a page that nobody touches takes no memory
			}
		}
		fmt.Println(len(kept))
	case "sleep":
		fmt.Println("ready")
		d, err := time.ParseDuration(args[0])
		time.Sleep(d)
		return err
	case "now":
		fmt.Println(time.Now().Unix())
	case "lines":
		n, err := strconv.Atoi(args[0])
		out := bufio.NewWriter(os.Stdout)
		for i := range n {
			fmt.Fprintln(out, "a line of the output, of which there are many", i)
		}
		return firstOf(err, out.Flush())
	default:
		return fmt.Errorf("probe does not know %q", what)
	}
	return nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func files(dir string) error {
	at := func(name string) string { return dir + "/" + name }
	if err := firstOf(os.Mkdir(at("d"), 0o755), os.WriteFile(at("d/f"), []byte("one"), 0o600), os.Rename(at("d/f"), at("d/g")), os.Symlink("g", at("d/l"))); err != nil {
		return err
	}
	f, err := os.OpenFile(at("d/l"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(" two")
	text, readErr := os.ReadFile(at("d/g"))
	to, linkErr := os.Readlink(at("d/l"))
	if err := firstOf(err, f.Close(), readErr, linkErr); err != nil {
		return err
	}
	when := time.Unix(1e9, 0)
	timesErr := os.Chtimes(at("d/g"), when, when)
	info, statErr := os.Stat(at("d/g"))
	if err := firstOf(timesErr, statErr); err != nil {
		return err
	}
	fmt.Println(string(text), to, info.Size(), info.ModTime().Equal(when))
	if err := firstOf(os.Remove(at("d/l")), os.Remove(at("d/g")), os.Remove(at("d"))); err != nil {
		return err
	}
	if _, err := os.Stat(at("d")); !os.IsNotExist(err) {
		return fmt.Errorf("it is there still: %v", err)
	}
	return nil
}
