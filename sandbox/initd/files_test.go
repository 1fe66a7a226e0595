package initd

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestDialAndListen(t *testing.T) {
	c, _ := startInit(t)
	for network, address := range map[string]string{"unix": "/run/a/b/c.sock", "tcp": "127.0.0.1:1234"} {
		for range 2 { // the second finds the socket of the first
			file, err := c.Listen(t.Context(), network, address)
			if err != nil {
				t.Fatal(err)
			}
			listener, err := net.FileListener(file)
			if err != nil {
				t.Fatal(err)
			}
			file.Close()
			go func() {
				for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
					_, _ = io.Copy(conn, conn)
					conn.Close()
				}
			}()
			conn, err := c.Dial(t.Context(), network, address)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(conn, "hello")
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
			if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
				t.Errorf("%s: %q, %v", network, got, err)
			}
			conn.Close()
			listener.(interface{ Close() error }).Close()
		}
	}
	if stdout, _, _ := sh(t, c, "stat -c '%a %u' /run/a/b/c.sock 2>&1"); stdout != "660 0\n" && !strings.Contains(stdout, "No such") {
		t.Errorf("the socket is %s", stdout)
	}
	if _, err := c.Dial(t.Context(), "tcp", "localhost:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refused: %v", err)
	}
	if _, err := c.Dial(t.Context(), "unix", "/run/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	for _, bad := range [][2]string{{"udp", "127.0.0.1:1"}, {"tcp", "example.com:80"}, {"unix", ""}, {"unix", "/" + strings.Repeat("x", 200)}} {
		if _, err := c.Dial(t.Context(), bad[0], bad[1]); err == nil {
			t.Errorf("dialled %v", bad)
		}
	}
}

func TestOpen(t *testing.T) {
	c, _ := startInit(t)
	file, err := c.Open(t.Context(), "/run/f", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = file.WriteString("text")
	file.Close()
	if stdout, _, _ := sh(t, c, "cat /run/f; stat -c ' %a' /run/f; mkfifo /run/fifo"); stdout != "text 640\n" {
		t.Errorf("got %q", stdout)
	}
	if _, err := c.Open(t.Context(), "/run/none", os.O_RDONLY, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Open(t.Context(), "/run/fifo", os.O_WRONLY, 0); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("a FIFO without a reader: %v", err)
	}
}
