package proxy

import (
	"context"
	"strings"
	"testing"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
)

// graph is a definition of one operation, with an input.
func graph(t testing.TB, op *pb.Op) *pb.Definition {
	t.Helper()
	encode := func(op *pb.Op) []byte {
		data, err := proto.Marshal(op)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	source := encode(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://docker.io/library/debian:latest"}}})
	if op.Inputs == nil {
		op.Inputs = []*pb.Input{{Digest: digest.FromBytes(source).String()}}
	}
	data := encode(op)
	end := encode(&pb.Op{Inputs: []*pb.Input{{Digest: digest.FromBytes(data).String()}}})
	return &pb.Definition{Def: [][]byte{source, data, end}}
}

func TestDefinition(t *testing.T) {
	meta := &pb.Meta{Args: []string{"true"}, Cwd: "/"}
	root := &pb.Mount{Dest: "/", Input: 0}
	exec := func(e *pb.ExecOp) *pb.Op { return &pb.Op{Op: &pb.Op_Exec{Exec: e}} }
	mount := func(m *pb.Mount) *pb.Op { return exec(&pb.ExecOp{Meta: meta, Mounts: []*pb.Mount{root, m}}) }
	file := func(a *pb.FileAction) *pb.Op {
		return &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{a}}}}
	}
	source := func(identifier string, attrs map[string]string) *pb.Op {
		return &pb.Op{Inputs: []*pb.Input{}, Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: identifier, Attrs: attrs}}}
	}
	unknown := exec(&pb.ExecOp{Meta: meta})
	unknown.ProtoReflect().SetUnknown([]byte{0x9a, 0x06, 0x01, 0x41}) // field 99

	for name, c := range map[string]struct {
		op   *pb.Op
		want string // part of the refusal; empty: none
	}{
		"command":            {exec(&pb.ExecOp{Meta: meta, Mounts: []*pb.Mount{root}}), ""},
		"no network":         {exec(&pb.ExecOp{Meta: meta, Network: pb.NetMode_NONE}), ""},
		"host's network":     {exec(&pb.ExecOp{Meta: meta, Network: pb.NetMode_HOST}), "network mode"},
		"network of 7":       {exec(&pb.ExecOp{Meta: meta, Network: 7}), "network mode"},
		"insecure":           {exec(&pb.ExecOp{Meta: meta, Security: pb.SecurityMode_INSECURE}), "security mode"},
		"security of 7":      {exec(&pb.ExecOp{Meta: meta, Security: 7}), "security mode"},
		"security of -1":     {exec(&pb.ExecOp{Meta: meta, Security: -1}), "security mode"},
		"device":             {exec(&pb.ExecOp{Meta: meta, CdiDevices: []*pb.CDIDevice{{Name: "a/b=c"}}}), "devices"},
		"cgroup":             {exec(&pb.ExecOp{Meta: &pb.Meta{Args: meta.Args, CgroupParent: "/"}}), "cgroup"},
		"no meta":            {exec(&pb.ExecOp{}), "no command"},
		"no exec":            {exec(nil), "no command"},
		"mount's input":      {mount(&pb.Mount{Dest: "/m", Input: 1}), "out of range"},
		"negative input":     {mount(&pb.Mount{Dest: "/m", Input: -2}), "out of range"},
		"negative output":    {mount(&pb.Mount{Dest: "/m", Output: -2}), "out of range"},
		"huge output":        {mount(&pb.Mount{Dest: "/m", Output: 1 << 40}), "out of range"},
		"mount's type":       {mount(&pb.Mount{Dest: "/m", MountType: 9}), "unknown type"},
		"content cache":      {mount(&pb.Mount{Dest: "/m", ContentCache: 9}), "unknown content cache"},
		"sharing":            {mount(&pb.Mount{Dest: "/m", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{Sharing: -1}}), "unknown sharing"},
		"cache, no options":  {mount(&pb.Mount{Dest: "/m", MountType: pb.MountType_CACHE}), "no options"},
		"secret, no options": {mount(&pb.Mount{Dest: "/m", MountType: pb.MountType_SECRET}), "no options"},
		"ssh, no options":    {mount(&pb.Mount{Dest: "/m", MountType: pb.MountType_SSH}), "no options"},
		"negative tmpfs":     {mount(&pb.Mount{Dest: "/m", MountType: pb.MountType_TMPFS, TmpfsOpt: &pb.TmpfsOpt{Size: -1}}), "negative size"},
		"selector":           {mount(&pb.Mount{Dest: "/m", Selector: "../../etc"}), `".."`},
		"destination":        {mount(&pb.Mount{Dest: "/../etc"}), `".."`},
		"make a file":        {file(&pb.FileAction{SecondaryInput: -1, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/f"}}}), ""},
		"file outside":       {file(&pb.FileAction{SecondaryInput: -1, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/../f"}}}), `".."`},
		"copy outside":       {file(&pb.FileAction{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Src: "a/../../b", Dest: "/"}}}), `".."`},
		"remove outside":     {file(&pb.FileAction{Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: ".."}}}), `".."`},
		"two dots in a name": {file(&pb.FileAction{Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/a..b"}}}), ""},
		"file's input":       {file(&pb.FileAction{Input: 1, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/a"}}}), "out of range"},
		"file's owner":       {file(&pb.FileAction{Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/d", Owner: &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "a", Input: 5}}}}}}}), "out of range"},
		"no action":          {file(&pb.FileAction{}), "unknown action"},
		"no file":            {&pb.Op{Op: &pb.Op_File{}}, "no actions"},
		"nested build":       {&pb.Op{Op: &pb.Op_Build{Build: &pb.BuildOp{}}}, "not served"},
		"merge":              {&pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}}}}}, ""},
		"merge of nothing":   {&pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 3}}}}}, "out of range"},
		"diff":               {&pb.Op{Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: -7}, Upper: &pb.UpperDiffInput{}}}}, "out of range"},
		"unknown field":      {unknown, "does not know"},
		"unknown input":      {&pb.Op{Inputs: []*pb.Input{{Digest: "sha256:0"}}, Op: exec(&pb.ExecOp{Meta: meta}).Op}, "no input"},
		"git":                {source("git://example.com/a.git", nil), ""},
		"unknown source":     {source("file:///etc/passwd", nil), "source"},
		"no scheme":          {source("x", nil), "source"},
		"own session":        {source("local://context", map[string]string{pb.AttrLocalSessionID: "mine"}), ""},
		"foreign session":    {source("local://context", map[string]string{pb.AttrLocalSessionID: "theirs"}), "not this job's"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := New(Config{})
			p.sessions.add("mine")
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // no session comes any more
			err := p.checkDefinition(ctx, graph(t, c.op))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestDefinitionsOfClients holds that what BuildKit's own client makes passes.
func TestDefinitionsOfClients(t *testing.T) {
	base := llb.Image("docker.io/library/debian:latest")
	state := base.Run(llb.Shlex("make"), llb.AddMount("/c", llb.Scratch(), llb.AsPersistentCacheDir("c", llb.CacheMountLocked)),
		llb.AddSecret("/s"), llb.AddSSHSocket(), llb.AddMount("/t", llb.Scratch(), llb.Tmpfs())).Root().
		File(llb.Copy(llb.Git("https://example.com/a.git", "main"), "/", "/src").Mkdir("/d", 0o755).Mkfile("/d/f", 0o644, nil, llb.WithUser("a")).Rm("/x"))
	def, err := llb.Merge([]llb.State{state, llb.Diff(base, state)}).Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := New(Config{}).checkDefinition(t.Context(), def.ToPB()); err != nil {
		t.Error(err)
	}
}

// FuzzSolve gives the checks whatever bytes a job can send. They must answer, and what they let through must
// pass again.
func FuzzSolve(f *testing.F) {
	for _, op := range []*pb.Op{
		{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"true"}}, Mounts: []*pb.Mount{{Dest: "/"}}, Security: 1}}},
		{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{Input: -1, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/../f"}}}}}}},
		{Op: &pb.Op_Build{Build: &pb.BuildOp{}}},
	} {
		def := graph(f, op)
		for _, m := range []proto.Message{
			&control.SolveRequest{Ref: "r", Definition: def, Exporters: []*control.Exporter{{Type: "docker"}}},
			&gateway.SolveRequest{Frontend: gatewayFrontend, FrontendOpt: map[string]string{"source": "docker/dockerfile"}, FrontendInputs: map[string]*pb.Definition{"a": def}},
			&gateway.ReturnRequest{Result: &gateway.Result{Result: &gateway.Result_Ref{Ref: &gateway.Ref{Def: def}}}},
		} {
			data, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p := &Proxy{}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for method, rule := range rules {
			if rule.request == nil {
				continue
			}
			out, err := rule.request(ctx, p, data)
			if err != nil {
				continue
			}
			if _, err := rule.request(ctx, p, out); err != nil {
				t.Errorf("%s: passed once, then %v", method, err)
			}
		}
	})
}
