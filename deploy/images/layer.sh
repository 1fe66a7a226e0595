# Functions of build.sh: making one layer. Sourced, not run.

say() { printf 'images: %s\n' "$*" >&2; }

# fail MESSAGE MENDING: says what is missing and how to mend it.
fail() {
	printf 'images: %s\n  mend it: %s\n' "$1" "$2" >&2
	exit 1
}

# mirrors: the Debian mirrors this machine's apt uses, "MIRROR SECURITY_MIRROR".
mirrors() {
	local targets mirror security
	targets=$(apt-get indextargets --format '$(LABEL) $(RELEASE) $(SITE)' 'Created-By: Packages' 2>/dev/null || true)
	mirror=${RUNNERD_DEBIAN_MIRROR:-$(awk -v s="$suite" '$2 == s || $1 == "Debian" {print $3; exit}' <<<"$targets")}
	security=${RUNNERD_DEBIAN_SECURITY_MIRROR:-$(awk -v s="$suite-security" '$2 == s || $1 == "Debian-Security" {print $3; exit}' <<<"$targets")}
	[[ $mirror && $security ]] || fail "this machine's apt names no Debian mirror" \
		"set RUNNERD_DEBIAN_MIRROR and RUNNERD_DEBIAN_SECURITY_MIRROR to http addresses"
	echo "$mirror $security"
}

# layer NAME BELOW INPUT FILES...: makes layer NAME on top of the layers BELOW, by the script
# NAME's folder gives for it, unless the cache holds it for the same inputs. Sets made to its file.
layer() {
	local name=$1 below=$2 input=$3 key begun=$SECONDS
	shift 3
	key=$({
		printf '%s\n' "$name" "$input" "$SOURCE_DATE_EPOCH" "$(dpkg --print-architecture)"
		for l in $below; do basename "$l"; done
		for f in "$@"; do echo "$(sha256sum <"$f") $(basename "$f")"; done
	} | sha256sum | cut -c1-32)
	made=$cache/layers/$name-$key.tar.gz
	if [[ -f $made ]]; then
		say "$(printf '%-18s current, made %s' "$name" "$(date -d "@$(stat -c %Y "$made")" +%F)")"
		return
	fi
	say "$(printf '%-18s making' "$name")"
	local upper
	upper=$(make_layer "$name" "$below")
	"$mkimage" layer -epoch "$SOURCE_DATE_EPOCH" -out "$made.new" "$upper"
	mv "$made.new" "$made"
	rm -rf "$upper"
	find "$cache/layers" -name "$name-????????????????????????????????.tar.gz" ! -path "$made" -delete
	say "$(printf '%-18s %s, %d s' "$name" "$(du -h "$made" | cut -f1)" "$((SECONDS - begun))")"
}

# make_layer NAME BELOW: prints the directory that holds the layer's files. debian is a whole root; a
# NAME-packages layer is what installing packages in a chroot changed; any other is files put in place.
make_layer() {
	local name=$1 below=$2 dir=$scratch/$1
	mkdir -p "$dir"
	case $name in
	debian) "$here/debian/rootfs.sh" "$dir" $suite $(mirrors) "$cache/debs" "${certificates[@]}" >&2 ;;
	*-packages)
		install_packages "$dir" "$below" "$here/${name%-packages}/packages" >&2
		dir=$dir/upper
		;;
	*) GOROOT=$goroot ENGINES=$engines "$here/$name/files.sh" "$dir" >&2 ;;
	esac
	echo "$dir"
}

# install_packages DIR BELOW PACKAGES: leaves in DIR/upper what installing PACKAGES on BELOW changes.
install_packages() {
	local dir=$1 below=$2 packages=$3 lower=$scratch/lower/$(basename "$2")
	if [[ ! -d $lower ]]; then
		mkdir -p "$lower"
		tar -C "$lower" --numeric-owner -xpzf "$below"
	fi
	mkdir -p "$dir/upper" "$dir/work" "$dir/root"
	mount -t overlay -o "lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work,index=off,redirect_dir=off,metacopy=off" overlay "$dir/root"
	cp "$packages" "$scratch/packages"
	in_chroot "$dir/root" "$here/setup.sh" packages
	umount "$dir/root"
}

# in_chroot ROOT SCRIPT ARGUMENTS...: runs SCRIPT in ROOT with /proc, a few devices, this machine's
# resolver and a package cache on /run, all gone afterwards.
in_chroot() {
	local root=$1 script=$2 node
	shift 2
	mount -t proc proc "$root/proc"
	mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
	for node in null zero full random urandom; do
		touch "$root/dev/$node"
		mount --bind "/dev/$node" "$root/dev/$node"
	done
	ln -s /proc/self/fd "$root/dev/fd"
	mount -t tmpfs -o mode=0755 tmpfs "$root/run"
	mkdir -p "$root/run/images/debs/partial" "$root/run/images/lists/partial"
	mount --bind "$cache/debs" "$root/run/images/debs"
	mkdir -p "$cache/debs/partial"
	cp "$script" "$root/run/images/script"
	[[ ! -f $scratch/packages ]] || cp "$scratch/packages" "$root/run/images/packages"
	# apt's caches stay out of the image; the machine's own ways of fetching (proxy, stale mirror) stay in force.
	{
		echo 'Dir::Cache::archives "/run/images/debs"; Dir::State::lists "/run/images/lists"; APT::Keep-Downloaded-Packages "true";'
		apt-config dump | grep -E '^Acquire::(Check-|Retries|[a-z]+::([Pp]roxy|[Tt]imeout))' || true
	} >"$root/run/images/apt.conf"
	mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
	local status=0
	APT_CONFIG=/run/images/apt.conf PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
		chroot "$root" /bin/sh /run/images/script "$@" || status=$?
	umount "$root/etc/resolv.conf" "$root/run/images/debs" "$root/run" "$root"/dev/{null,zero,full,random,urandom} "$root/dev" "$root/proc"
	((status == 0)) || fail "$(basename "$script") failed in the image, its error is above" "mend it and run again; finished layers are kept"
}
