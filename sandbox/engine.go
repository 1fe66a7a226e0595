package sandbox

// engineScript moves an engine out of its cgroup's root on v2, where a cgroup that has processes may not
// hand controllers to its children (cgroup-v2, "No Internal Process Constraint"). On v1 it does nothing.
const engineScript = `if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	mkdir -p /sys/fs/cgroup/init
	while read -r pid; do echo "$pid" >/sys/fs/cgroup/init/cgroup.procs; done </sys/fs/cgroup/cgroup.procs
	echo "+cpu +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
fi
exec "$0" "$@"`

// EngineArgs are the arguments that start an engine in a Companion that is one, ready to make cgroups of
// its own. The process that they start becomes the engine.
func EngineArgs(args ...string) []string {
	return append([]string{"/bin/sh", "-c", engineScript}, args...)
}
