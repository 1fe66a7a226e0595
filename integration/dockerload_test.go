//go:build integration

package integration

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestDockerLoad has images of the project's builder in the sandbox's engine, which pulls them. An image that goes
// the way of a tar leaves an event "load" in the engine.
func TestDockerLoad(t *testing.T) {
	d := startDaemon(t, "")
	const prepare = "mkdir -p /tmp/c && cd /tmp/c && printf 'FROM debian:bookworm-slim\nRUN echo built >/b\nCMD [\"cat\", \"/b\"]\n' >Dockerfile\n" +
		`events() { docker events --since 0 --until "$(date +%s.%N)" --filter type=image --filter event=$1 --format '{{.Action}}' | wc -l; }
		rx() { awk '$1 == "eth0:" {print $2}' /proc/net/dev; }
		registry=$(docker info -f '{{range .RegistryConfig.IndexConfigs}}{{println .Name}}{{end}}' | grep registry.runnerd)
	`
	for _, c := range []struct{ name, script, stdout string }{
		{"lent by the machine", `printf 'FROM debian:bookworm-slim\nRUN head -c 30000000 /dev/urandom >/made\n' >Dockerfile
			a=$(rx); docker build -q -t it . >&2; b=$(rx); docker build -q -t it -t more . >&2; c=$(rx)
			echo "$((b - a)) and $((c - b)) bytes" >&2; test $((b - a)) -lt 100000; test $((c - b)) -lt 100000
			docker run --rm more true; echo $(events load) $(events pull)`, "0 1"},
		{"lent whiteouts", `printf 'FROM debian:bookworm-slim\nRUN mkdir /d && touch /d/gone /gone\nRUN rm -r /d /gone && mkdir /d && touch /d/there\n' >Dockerfile
			a=$(rx); docker build -q -t it . >&2; test $(($(rx) - a)) -lt 100000; docker run --rm it sh -c 'echo /d/* /gone*'`, "/d/there /gone*"},
		{"removed and lent again", `docker build -q -t it . >&2; docker image rm it >&2; docker system prune -af >&2; docker run --rm $(docker build -q .)`, "built"},
		{"an image on another", `docker build -q -t it . >&2; printf 'FROM it\nRUN echo more >>/b\n' | docker build -q --builder default -t more - >&2; docker run --rm more | tail -1`, "more"},
		{"by its id", `docker run --rm $(docker build -q .)`, "built"},
		{"by its id, once more", `docker build -q . >&2; docker run --rm $(docker build -q .); test $(events pull) = 1`, "built"},
		{"two tags", `docker build -t one -t other/two:x . && docker run --rm one >&2 && docker run --rm other/two:x
			test $(events load) = 0; ! docker images --format '{{.Repository}}' | grep cache/`, "built"},
		{"a tag moves", `docker build -t it . && sed -i s/built/again/ Dockerfile && docker build --load -t it . && docker run --rm it; test $(events load) = 0`, "again"},
		{"push what was loaded", `docker build -t $registry/it/loaded:1 . && docker push $registry/it/loaded:1 >&2 && docker image rm $registry/it/loaded:1 >&2
			docker run --rm $registry/it/loaded:1; test $(events load) = 0`, "built"},
		{"file", `docker build --output type=docker,dest=f.tar -t it . && ! docker image inspect it >&2 && docker load <f.tar >&2 && docker run --rm it; test $(events pull) = 0`, "built"},
		{"OCI file", `docker build --output type=oci,dest=f.tar . && tar -tf f.tar | grep -c oci-layout; test $(events pull) = 0`, "1"},
		{"several outputs", `docker buildx build --load --output type=local,dest=out -t it . && cat out/b >&2 && docker run --rm it; test $(events load) = 0`, "built"},
		{"push and load", `docker buildx build --push --load -t $registry/it/both:1 . && docker run --rm $registry/it/both:1`, "built"},
		{"another engine", `docker context create inner --docker host=unix:///var/run/docker.sock >&2
			docker --context inner build -t it . >&2; docker -H unix:///run/docker.sock build -t it . >&2; DOCKER_CONTEXT=inner docker build -t it . >&2; echo $(events load)`, "3"},
		{"with provenance", `docker build --provenance mode=max -t it . && docker run --rm it`, "built"},
		{"bake", `sed s/built/other/ Dockerfile >Second
			printf 'group "default" { targets = ["one", "two"] }\ntarget "one" { tags = ["one"] }\ntarget "two" {\n dockerfile = "Second"\n tags = ["two"]\n}\n' >docker-bake.hcl
			docker buildx bake && docker run --rm one >&2 && docker run --rm two; echo $(events load) >&2; test $(events load) = 0`, "other"},
		{"names in the answer", `docker build --metadata-file meta -t it . && grep '"image.name": "docker.io/library/it:latest"' meta >&2 && ! grep cache/ meta && docker image inspect -f '{{.Id}}' it >id
			grep -q "$(cat id)" meta && echo yes`, "yes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, code := d.script([]string{"--project", "a"}, prepare+c.script)
			lines := strings.Split(strings.TrimSpace(stdout), "\n")
			if code != 0 || lines[len(lines)-1] != c.stdout {
				t.Errorf("exit code %d, stdout %.500q, want %q\n%.4000s", code, stdout, c.stdout, stderr)
			}
		})
	}
}

// TestLoansAreReadOnly has the root of an engine write to the layers that the machine lends it. The same steps make a
// mount writable that did not come from the machine.
func TestLoansAreReadOnly(t *testing.T) {
	d := startDaemon(t, "")
	const build = "mkdir -p /tmp/c && cd /tmp/c && printf 'FROM debian:bookworm-slim\nRUN echo built >/b\n' >Dockerfile && docker build -q -t it . >&2\n"
	const attack = build + `docker run --rm --cap-add ALL --security-opt seccomp=unconfined -v /:/engine it bash -c '
		try() {
			touch $1/attacked && echo "wrote to $2"
			mount -o remount,bind,rw $1 && echo "remounted $2"
			mount --bind $1 /mnt && mount -o remount,bind,rw /mnt && echo "remounted a bind of $2"
			touch $1/attacked /mnt/attacked && echo "wrote to $2 at last"
			umount /mnt
		}
		mkdir /control && mount --bind /control /control && mount -o remount,bind,ro /control && try /control control
		for loan in /engine/dev/.runnerd-loans /engine/dev/.runnerd-loans/blobs /engine/dev/.runnerd-loans/0/fs /engine/dev/.runnerd-loans/1/fs; do
			grep -q " $loan " /proc/self/mountinfo && echo loan; try $loan loan
		done
		true
	'`
	stdout, stderr, code := d.script([]string{"--project", "a"}, attack)
	if code != 0 || !strings.Contains(stdout, "remounted control") || !strings.Contains(stdout, "wrote to control at last") {
		t.Fatalf("exit code %d: the attack fails where it should not:\n%s%s", code, stdout, stderr)
	}
	if strings.Count(stdout, "loan\n") < 4 || strings.Contains(stdout, " loan") || strings.Contains(stdout, " of loan") {
		t.Errorf("the machine's layers:\n%s%s", stdout, stderr)
	}
	stdout, stderr, code = d.script([]string{"--project", "a"}, build+"docker run --rm it sh -c 'ls / /*'")
	if code != 0 || strings.Contains(stdout, "attacked") {
		t.Errorf("the next job: exit code %d: %s%s", code, stdout, stderr)
	}
}

// TestDockerLoadStreams loads an image that is larger than what the daemon may need for it.
func TestDockerLoadStreams(t *testing.T) {
	d := startDaemon(t, "")
	const script = `mkdir -p /tmp/c && cd /tmp/c && printf 'FROM debian:bookworm-slim\nRUN head -c %s /dev/urandom >/made\n' >Dockerfile && docker build -t it . >&2 && docker run --rm it sh -c 'wc -c </made'`
	build := func(bytes string) {
		t.Helper()
		if stdout, stderr, code := d.script([]string{"--memory", "512MiB"}, fmt.Sprintf(script, bytes)); code != 0 || stdout != bytes+"\n" {
			t.Fatalf("exit code %d, %q\n%.4000s", code, stdout, stderr)
		}
	}
	build("1000")
	before := d.peakMemory()
	build("600000000")
	if grown := d.peakMemory() - before; grown > 100<<20 {
		t.Errorf("the daemon took %d MiB more for an image of 600 MB", grown>>20)
	}
}

// peakMemory is how many bytes of memory the daemon has had at most.
func (d *daemon) peakMemory() int64 {
	d.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				d.t.Fatal(err)
			}
			return kib << 10
		}
	}
	d.t.Fatal("no VmHWM")
	return 0
}
