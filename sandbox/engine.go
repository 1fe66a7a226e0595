package sandbox

// engineScript moves an engine out of its cgroup's root on v2, where a cgroup that has processes may not
// hand controllers to its children (cgroup-v2, "No Internal Process Constraint"). A process may have been started
// in the root meanwhile, so it tries again; an engine that could not limit its containers is not started. On v1
// it does nothing.
const engineScript = `if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	cd /sys/fs/cgroup && mkdir -p init
	for try in 1 2 3 4 5 6; do
		if [ $try = 6 ]; then echo "the engine's cgroup cannot hand on its controllers" >&2; exit 1; fi
		while read -r pid; do echo "$pid" >init/cgroup.procs; done <cgroup.procs 2>/dev/null
		if echo "+cpu +memory +pids" >cgroup.subtree_control; then break; fi
	done
	{ echo "+io" >cgroup.subtree_control; } 2>/dev/null # for whose the transfers are; it may be missing
	cd "$OLDPWD"
fi
exec "$0" "$@"`

// EngineArgs are the arguments that start an engine in a Companion that is one, ready to make cgroups of
// its own. The process that they start becomes the engine.
func EngineArgs(args ...string) []string {
	return append([]string{"/bin/sh", "-c", engineScript}, args...)
}
