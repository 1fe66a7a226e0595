package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

var update = flag.Bool("update", false, "write configs/ anew")

const configsDir = "../../../configs"

func TestGeneratedFiles(t *testing.T) {
	for name, want := range map[string][]byte{"runnerd.yaml": Reference(), "runnerd.schema.json": Schema()} {
		path := filepath.Join(configsDir, name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("configs/%s is out of date (%v): run 'go test ./cmd/runnerd/config -update'", name, err)
		}
	}
}

func TestReferenceHasEveryKeyAndEqualsTheDefaults(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(configsDir, "runnerd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("runnerd.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	if want := Default(); !reflect.DeepEqual(normal(c), normal(want)) {
		t.Errorf("the reference differs from the defaults:\n%s\n%s", c.YAML(), want.YAML())
	}
	for _, key := range Keys() {
		last := key[strings.LastIndex(key, ".")+1:]
		if !bytes.Contains(text, []byte(last+":")) {
			t.Errorf("configs/runnerd.yaml does not have %s", key)
		}
	}
}

// normal makes empty lists nil.
func normal(c *Config) Config {
	n := *c
	if len(n.Images.Preload) == 0 {
		n.Images.Preload = nil
	}
	if len(n.Network.DNS) == 0 {
		n.Network.DNS = nil
	}
	if len(n.Pool) == 0 {
		n.Pool = nil
	}
	if len(n.Builder.Frontends) == 0 {
		n.Builder.Frontends = nil
	}
	if len(n.Registry.Shared) == 0 {
		n.Registry.Shared = nil
	}
	if len(n.Builder.Insecure) == 0 {
		n.Builder.Insecure = nil
	}
	return n
}

func TestEveryKeyHasADescription(t *testing.T) {
	var s map[string]any
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	n := 0
	var walk func(path string, s map[string]any)
	walk = func(path string, s map[string]any) {
		props, _ := s["properties"].(map[string]any)
		if len(props) > 0 && s["additionalProperties"] != false {
			t.Errorf("%s: unknown keys are allowed by the schema", path)
		}
		for name, p := range props {
			p := p.(map[string]any)
			if p["description"] == nil {
				t.Errorf("%s.%s has no description", path, name)
			}
			n++
			walk(path+"."+name, p)
		}
	}
	walk("", s)
	if n < len(Keys()) {
		t.Errorf("the schema has %d keys, there are %d", n, len(Keys()))
	}
}

func TestShowIsRead(t *testing.T) {
	c := Default()
	c.Resolve()
	c.Pool = []Pool{{Sandbox: sandbox.Nesting{"container", "dind"}, Image: "a/b:c", Size: 3}}
	got, err := Parse("x", c.YAML())
	if err != nil {
		t.Fatalf("%v\n%s", err, c.YAML())
	}
	if !reflect.DeepEqual(normal(got), normal(c)) {
		t.Errorf("shown and read:\n%s\nis\n%s", c.YAML(), got.YAML())
	}
}

func TestGood(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "comment": "# nothing\n", "document": "---\nversion: 1\n", "nothing set": "limits:\nsocket:\n  mode:\n",
	} {
		if c, err := Parse(name, []byte(text)); err != nil || !reflect.DeepEqual(c, Default()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := Parse("x", []byte(`
socket: {path: /run/x.sock, mode: 0600}
limits:
  default: {cpu: 0.5, memory: 1.5GiB, disk: 1g}
  max: {cpu: "2500m"}
capacity: {jobs: 1_000}
timeout: {default: 90m, max: 2d}
policy: {may: {machine: [container]}}
pool:
- sandbox: container
  size: 2
network: {dns: [9.9.9.9]}
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Limits.Default.CPU != 500 || c.Limits.Default.Memory != 3<<29 || c.Limits.Max.CPU != 2500 || c.Socket.Mode != 0o600 ||
		c.Capacity.Jobs != 1000 || c.Timeout.Max.String() != "2d" || len(c.Policy.May) != 1 || c.Pool[0].Size != 2 || c.Limits.Default.PIDs != 4096 {
		t.Errorf("%s", c.YAML())
	}
}

func TestProblemsGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(filepath.Base(file), text)
			var ps Problems
			if !errors.As(err, &ps) {
				t.Fatalf("no problems: %v", err)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, _ := os.ReadFile(golden)
			if got := err.Error() + "\n"; got != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestUnits(t *testing.T) {
	sizes := map[string]Size{"0": 0, "1": 1, "512MiB": 512 << 20, "512 MiB": 512 << 20, "1.5GiB": 3 << 29, "10GB": 1e10, "64m": 64 << 20, "2Gi": 2 << 30, "7B": 7, "9223372036854775807": 1<<63 - 1}
	for text, want := range sizes {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: %d, %v", text, s, err)
		}
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%s is written as %s and read as %d", text, s, again)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1e9", "0x10", "1XB", "9223372036854775808", "8388608TiB", "NaN", "inf", "1_000", "1 2"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("size %q was read", text)
		}
	}
	for text, want := range map[string]CPU{"1": 1000, "1.5": 1500, "500m": 500, ".25": 250, "0": 0} {
		var c CPU
		if err := c.UnmarshalText([]byte(text)); err != nil || c != want {
			t.Errorf("%s: %d, %v", text, c, err)
		}
	}
	for _, text := range []string{"", "m", "-1", "1e3", "x", "1.5m", "inf"} {
		if err := new(CPU).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("cpu %q was read", text)
		}
	}
	for _, text := range []string{"", "10", "-5s", "xd", "1d-3h", "d"} {
		if err := new(Duration).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("duration %q was read", text)
		}
	}
	for text, want := range map[string]string{"7d": "7d", "36h": "36h", "1d12h": "36h", "90s": "1m30s", "60s": "1m", "0": "0s"} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || d.String() != want {
			t.Errorf("%s: %s, %v", text, d, err)
		}
	}
}

func TestShare(t *testing.T) {
	for text, want := range map[string]Share{"85%": {Percent: 85}, "12.5 %": {Percent: 12.5}, "0": {}, "20GiB": {Bytes: 20 << 30}, "100%": {Percent: 100}} {
		var s, again Share
		if err := errors.Join(s.UnmarshalText([]byte(text)), again.UnmarshalText([]byte(s.String()))); err != nil || s != want || again != want {
			t.Errorf("%s: %+v, %+v, %v", text, s, again, err)
		}
	}
	for _, text := range []string{"", "%", "-1%", "101%", "1e1%", "NaN%", "5%%", "x"} {
		if err := new(Share).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("share %q was read", text)
		}
	}
}

func TestDisk(t *testing.T) {
	c, err := Parse("x", []byte("disk: {budget: 300GiB, high: 90%, low: 200GiB, floor: 10%, min_age: 0s, wait: 1m}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if l := c.Disk.Limits(); l.Budget.Bytes != 300<<30 || l.High.Percent != 90 || l.Low.Bytes != 200<<30 || l.Floor.Percent != 10 || l.MinAge != 0 || l.Wait != time.Minute {
		t.Errorf("%+v", l)
	}
	for text, want := range map[string]string{
		"{low: 90%}": "disk.low", "{high: 10GiB, low: 10GiB}": "disk.low", "{high: 0}": "disk.high", "{budget: 1MiB}": "disk.budget",
		"{budget: 1GiB, high: 2GiB, low: 1GiB}": "disk.high", "{floor: 100%}": "disk.floor", "{wait: 0s}": "disk.wait", "{high: lots}": "85%",
	} {
		if _, err := Parse("x", []byte("disk: "+text+"\n")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Reference())
	f.Add([]byte("limits: {default: {cpu: [1]}}\n? x\n: y\n&a b: *a\n<<: 1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("x", text)
		var ps Problems
		if (c == nil) == (err == nil) || err != nil && (!errors.As(err, &ps) || len(ps) == 0) {
			t.Errorf("%v, %v", c, err)
		}
	})
}

func TestSorted(t *testing.T) {
	if !slices.IsSorted(Keys()) {
		t.Error("Keys are not sorted")
	}
}
