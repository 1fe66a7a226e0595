//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/runnerd/runnerd/sandbox"
)

// TestLoans lends images to a sandbox's companion, and holds that the machine does not keep every one that it has lent.
func TestLoans(t *testing.T) {
	const images, layers = 12, 3
	name := func(i int) string { return fmt.Sprintf("loans/image-%d:1", i) }
	for i := range images {
		img, err := random.Image(1000, layers)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(reference(t, fmt.Sprintf("127.0.0.1:%d/%s", host.port, name(i))), img); err != nil {
			t.Fatal(err)
		}
	}
	start := func(id string) sandbox.Pod {
		t.Helper()
		sb, err := host.container.Start(t.Context(), nil, sandbox.Spec{ID: id, Image: debian})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeClean(t, sb) })
		return sb.(sandbox.Pod)
	}
	borrow := func(sb sandbox.Pod) sandbox.Member {
		t.Helper()
		m, err := sb.Add(t.Context(), sandbox.Companion{Name: "borrower", Image: debian, Engine: true, Borrows: "/dev/loans"})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	lend := func(sb sandbox.Pod, image int) sandbox.Loan {
		t.Helper()
		loan, err := sb.(sandbox.Lender).Lend(t.Context(), name(image), sandbox.Pull{})
		if err != nil {
			t.Fatal(err)
		}
		return loan
	}
	first := start("loans-1")
	if _, err := first.(sandbox.Lender).Lend(t.Context(), name(0), sandbox.Pull{}); err == nil || !strings.Contains(err.Error(), "borrows") {
		t.Errorf("lent to nobody: %v", err)
	}
	borrower := borrow(first)
	for i := range images - 1 {
		loan := lend(first, i)
		if len(loan.Layers) != layers || len(loan.Blobs) != layers+2 {
			t.Fatalf("%d layers and %d blobs", len(loan.Layers), len(loan.Blobs))
		}
		var script strings.Builder
		for _, blob := range loan.Blobs {
			fmt.Fprintf(&script, "echo '%s  /dev/loans/%s' | sha256sum -c --quiet\n", strings.TrimPrefix(blob.Digest, "sha256:"), blob.Path)
		}
		for _, layer := range loan.Layers {
			fmt.Fprintf(&script, "ls /dev/loans/%s/fs | grep -q random_file\n", layer.Path)
		}
		var out strings.Builder
		exit, err := borrower.Exec(t.Context(), sandbox.Process{Args: []string{"/bin/sh", "-euc", script.String()}, Stdout: &out, Stderr: &out})
		if err != nil || !exit.Success() {
			t.Fatal(exit, err, out.String())
		}
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept := func() (n int) {
		stored, err := host.container.StoredImages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range stored {
			if len(img.Names) > 0 && strings.Contains(img.Names[0], "/loans/") {
				n++
			}
		}
		return n
	}
	if n := kept(); n != images-1 {
		t.Fatalf("%d images are there", n)
	}
	second := start("loans-2")
	borrow(second)
	lend(second, images-1)
	for deadline := time.Now().Add(20 * time.Second); kept() != 5; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d images are kept", kept())
		}
	}
	lend(second, 0) // which was removed
}
