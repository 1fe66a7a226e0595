package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// The bounds of what a client may ask for in low-level instructions (LLB). Those of a Dockerfile the frontend
// makes in the worker: clients send them for contexts and linked targets only.
const (
	maxOps    = 20_000
	maxInputs = 1_000 // of one operation, and outputs
)

// schemes are the sources that a build may have.
var schemes = []string{"docker-image", "docker-image+blob", "oci-layout", "oci-layout+blob", "local", "git", "http", "https"}

// checkDefinition judges a graph of operations. What BuildKit makes of numbers out of range is not relied on.
func (p *Proxy) checkDefinition(ctx context.Context, def *pb.Definition) error {
	if def == nil {
		return nil
	}
	if len(def.Def) > maxOps {
		return status.Errorf(codes.InvalidArgument, "the build has %d operations: at most %d are allowed", len(def.Def), maxOps)
	}
	known := make(map[string]bool, len(def.Def))
	for _, data := range def.Def {
		known[digest.FromBytes(data).String()] = true
	}
	for i, data := range def.Def {
		var op pb.Op
		err := proto.Unmarshal(data, &op)
		if err == nil && len(op.ProtoReflect().GetUnknown()) > 0 {
			err = errors.New("it has fields that this runnerd does not know")
		}
		if err == nil {
			err = p.checkOp(ctx, &op, known)
		}
		if _, ok := status.FromError(err); !ok { // not a refusal of its own words
			err = status.Errorf(codes.InvalidArgument, "operation %d of the build: %v", i, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *Proxy) checkOp(ctx context.Context, op *pb.Op, known map[string]bool) error {
	if len(op.Inputs) > maxInputs {
		return errors.New("too many inputs")
	}
	for _, in := range op.Inputs {
		if in == nil || !known[in.Digest] {
			return fmt.Errorf("there is no input %q", in.GetDigest())
		}
		if err := within(in.Index, 0, maxInputs); err != nil {
			return fmt.Errorf("input's index: %w", err)
		}
	}
	inputs := len(op.Inputs)
	switch o := op.Op.(type) {
	case nil: // the end of the graph
		if inputs != 1 {
			return errors.New("the last operation has not one input")
		}
		return nil
	case *pb.Op_Exec:
		return checkExec(o.Exec, inputs)
	case *pb.Op_Source:
		return p.checkSource(ctx, o.Source)
	case *pb.Op_File:
		return checkFile(o.File, inputs)
	case *pb.Op_Merge:
		for _, in := range o.Merge.GetInputs() {
			if err := input(in.GetInput(), inputs); err != nil {
				return err
			}
		}
		return nil
	case *pb.Op_Diff:
		return errors.Join(input(o.Diff.GetLower().GetInput(), inputs), input(o.Diff.GetUpper().GetInput(), inputs))
	}
	return fmt.Errorf("operations of the kind %T are not served", op.Op)
}

// input judges the number of an input; -1 is none.
func input(n int64, inputs int) error { return within(n, -1, inputs) }

func within(n, least int64, end int) error {
	if n < least || n >= int64(end) {
		return fmt.Errorf("%d is out of range", n)
	}
	return nil
}

func (p *Proxy) checkSource(ctx context.Context, source *pb.SourceOp) error {
	scheme, _, ok := strings.Cut(source.GetIdentifier(), "://")
	if !ok || !slices.Contains(schemes, scheme) {
		return denied("use the source %q", source.GetIdentifier())
	}
	for _, key := range []string{pb.AttrLocalSessionID, pb.AttrOCILayoutSessionID} {
		if err := p.checkSession(ctx, source.Attrs[key]); err != nil {
			return err
		}
	}
	return nil
}

func checkExec(e *pb.ExecOp, inputs int) error {
	if e.GetMeta() == nil || len(e.Meta.Args) == 0 {
		return errors.New("there is no command")
	}
	switch {
	case e.Security != pb.SecurityMode_SANDBOX:
		return denied("use the security mode %s", e.Security)
	case e.Network != pb.NetMode_UNSET && e.Network != pb.NetMode_NONE:
		return denied("use the network mode %s", e.Network)
	case len(e.CdiDevices) > 0:
		return denied("use devices")
	case e.Meta.CgroupParent != "":
		return denied("use the cgroup %q", e.Meta.CgroupParent)
	case len(e.Mounts) > maxInputs:
		return errors.New("too many mounts")
	}
	for _, m := range e.Mounts {
		if err := checkMount(m, inputs); err != nil {
			return fmt.Errorf("mount %q: %w", m.GetDest(), err)
		}
	}
	return nil
}

func checkMount(m *pb.Mount, inputs int) error {
	if m == nil {
		return errors.New("it is empty")
	}
	if _, ok := pb.MountType_name[int32(m.MountType)]; !ok {
		return fmt.Errorf("unknown type %d", m.MountType)
	}
	if _, ok := pb.MountContentCache_name[int32(m.ContentCache)]; !ok {
		return fmt.Errorf("unknown content cache %d", m.ContentCache)
	}
	if _, ok := pb.CacheSharingOpt_name[int32(m.GetCacheOpt().GetSharing())]; !ok {
		return fmt.Errorf("unknown sharing %d", m.CacheOpt.Sharing)
	}
	if m.GetTmpfsOpt().GetSize() < 0 {
		return errors.New("negative size")
	}
	for kind, set := range map[pb.MountType]bool{
		pb.MountType_SECRET: m.SecretOpt != nil, pb.MountType_SSH: m.SSHOpt != nil, pb.MountType_CACHE: m.CacheOpt != nil,
	} {
		if m.MountType == kind && !set {
			return fmt.Errorf("a mount of the type %s has no options", kind)
		}
	}
	return errors.Join(input(m.Input, inputs), within(m.Output, -1, maxInputs), climbs(m.Selector), climbs(m.Dest))
}

func checkFile(f *pb.FileOp, inputs int) error {
	if len(f.GetActions()) == 0 || len(f.Actions) > maxOps {
		return errors.New("it has no actions, or too many")
	}
	for i, a := range f.Actions {
		if a == nil {
			return errors.New("it has an empty action")
		}
		end := inputs + i // an action takes what the ones before it made
		err := errors.Join(input(a.Input, end), input(a.SecondaryInput, end), within(a.Output, -1, maxInputs))
		var owner *pb.ChownOpt
		switch action := a.Action.(type) {
		case *pb.FileAction_Copy:
			err = errors.Join(err, climbs(action.Copy.GetSrc()), climbs(action.Copy.GetDest()))
			owner = action.Copy.GetOwner()
		case *pb.FileAction_Mkfile:
			err = errors.Join(err, climbs(action.Mkfile.GetPath()))
			owner = action.Mkfile.GetOwner()
		case *pb.FileAction_Mkdir:
			err = errors.Join(err, climbs(action.Mkdir.GetPath()))
			owner = action.Mkdir.GetOwner()
		case *pb.FileAction_Symlink:
			err = errors.Join(err, climbs(action.Symlink.GetNewpath()))
			owner = action.Symlink.GetOwner()
		case *pb.FileAction_Rm:
			err = errors.Join(err, climbs(action.Rm.GetPath()))
		default:
			err = errors.New("it has an unknown action")
		}
		for _, who := range []*pb.UserOpt{owner.GetUser(), owner.GetGroup()} {
			if name, ok := who.GetUser().(*pb.UserOpt_ByName); ok {
				err = errors.Join(err, input(name.ByName.GetInput(), inputs))
			}
		}
		if err != nil {
			return fmt.Errorf("file action %d: %w", i, err)
		}
	}
	return nil
}

// climbs refuses a path that leaves its root: clients clean theirs.
func climbs(path string) error {
	if slices.Contains(strings.Split(path, "/"), "..") {
		return fmt.Errorf("the path %q has \"..\" in it", path)
	}
	return nil
}
