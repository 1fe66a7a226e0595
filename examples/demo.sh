#!/usr/bin/env bash
# Builds examples/farm cold and warm, then runs a job with a Docker Engine in its sandbox, on a daemon of
# its own that is gone at the end. --keep leaves the daemon and its state.
set -euo pipefail
cd "$(dirname "$0")/.."

keep=
[[ ${1:-} != --keep ]] || keep=1
[[ $EUID == 0 ]] || { echo "make demo needs root, like the daemon it starts: run it with sudo" >&2; exit 1; }

state=$(mktemp -d /var/tmp/runnerd-demo-XXXXXX)
chmod 711 "$state"
runnerd=("$PWD/bin/runnerd" --state-dir "$state" --config "$state/runnerd.yaml")
cat >"$state/runnerd.yaml" <<YAML
network: {subnet: 10.86.0.0/16} # neither these addresses nor these ids are those of a runnerd with the defaults
uid_range: {first: 805306368, count: 1024}
registry: {address: ":0"}
drain: 5s
YAML

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

"${runnerd[@]}" serve >"$state/serve.log" 2>&1 &
daemon=$!
finish() {
	local code=$?
	if [[ $keep && $code == 0 ]]; then
		say "kept: bin/runnerd --state-dir $state jobs (stop it with: kill $daemon)"
		return
	fi
	kill "$daemon" 2>/dev/null || true
	wait "$daemon" 2>/dev/null || true
	if ((code != 0)); then
		echo "the daemon's log:" >&2
		tail -n 40 "$state/serve.log" >&2
	fi
	rm -rf --one-file-system "$state"
}
trap finish EXIT
trap 'exit 130' INT TERM

say "starting the daemon"
for _ in $(seq 300); do
	"${runnerd[@]}" jobs >/dev/null 2>&1 && break
	kill -0 "$daemon" 2>/dev/null || exit 1
	sleep 0.1
done

# build LABEL: the whole farm; one of its targets fails on purpose, so exit code 1 is what is expected.
build() {
	local code=0
	say "building examples/farm, $1"
	"${runnerd[@]}" build --push --progress "${PROGRESS:-quiet}" examples/farm || code=$?
	((code == 1)) || { echo "expected exit code 1, for the one target that fails on purpose, got $code" >&2; exit 1; }
	"${runnerd[@]}" jobs --all --json >"$state/$1.json"
}
build cold
build warm

say "a merge request's build: warm from what the project trusts, and it can write none of that"
"${runnerd[@]}" build --untrusted --progress quiet --push=false examples/farm docs web
job=$("${runnerd[@]}" jobs --all --json | jq -r 'map(select(.name == "web" and .scope.trust == "untrusted"))[0].id')
"${runnerd[@]}" cache explain "$job"

say "a job with a Docker Engine in its sandbox (container/dind)"
"${runnerd[@]}" run --sandbox container/dind --memory 2GiB -- sh -euc '
	cd /workspace
	printf "FROM debian:bookworm-slim\nRUN echo built in a sandbox >/proof\nCMD cat /proof\n" >Dockerfile
	docker build -q -t proof . >/dev/null
	test "$(docker run --rm -m 64m proof)" = "built in a sandbox"
	echo "docker build and docker run -m 64m work; on the machine, root in here is id $(awk "{print \$2}" /proc/self/uid_map)"
'

say "what it took"
jq -rn --slurpfile cold "$state/cold.json" --slurpfile warm "$state/warm.json" '
	def seconds: if . then (. / 1e6 | round / 1000 | tostring) + " s" else "-" end;
	def builds: map(select(.kind == "build")) | sort_by(.submitted);
	($cold[0] | builds) as $first
	| ($warm[0] | builds | map(select(.id as $id | $first | map(.id) | index($id) | not))) as $second
	| ["JOB", "OUTCOME", "COLD", "WARM", "CACHED", "DIGEST", "BUILDER PEAK"],
	  ($first | sort_by(.name)[] | . as $c | ($second[] | select(.name == $c.name)) as $w
	    | [.name, .result.outcome, ($c.result.detail.duration_ns | seconds), ($w.result.detail.duration_ns | seconds),
	       "\($w.result.detail.cached // 0)/\($w.result.detail.steps // 0)", ($w.result.detail.digest // "-")[0:19],
	       "\((($w.result.usage.memory_peak_bytes // 0) / 1048576) | floor) MiB"])
	| @tsv' | column -t -s $'\t'
