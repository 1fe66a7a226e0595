package main

import (
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxUserFile bounds how much of /etc/passwd and /etc/group is read, in bytes.
const maxUserFile = 1 << 20

// identity is who a process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// lookUser resolves "user", "uid", "user:group" or "uid:gid" with the sandbox's own files; "" is root. A
// user that the image does not have is the user's error, like a command that it does not have.
func lookUser(text string) (identity, *failure) {
	user, group, hasGroup := strings.Cut(text, ":")
	if user == "" {
		user = "0"
	}
	who := identity{home: "/"}
	name, found := "", false
	for _, f := range records("/etc/passwd", 6) { // name:password:uid:gid:gecos:home:shell (passwd(5))
		if f[0] != user && f[2] != user {
			continue
		}
		uid, ok1 := parseID(f[2])
		gid, ok2 := parseID(f[3])
		if ok1 && ok2 {
			who.uid, who.gid, who.home, name, found = uid, gid, f[5], f[0], true
			break
		}
	}
	if !found {
		uid, ok := parseID(user)
		if !ok {
			return who, &failure{what: "user " + strconv.Quote(user) + ": not in the image's /etc/passwd", code: 126}
		}
		who.uid = uid
		if uid == 0 {
			who.home = "/root"
		}
	}
	for _, f := range records("/etc/group", 4) { // name:password:gid:members (group(5))
		gid, ok := parseID(f[2])
		if !ok {
			continue
		}
		if hasGroup && (f[0] == group || f[2] == group) {
			who.gid, hasGroup = gid, false
		}
		for _, member := range strings.Split(f[3], ",") {
			if member == name && name != "" {
				who.groups = append(who.groups, gid)
				break
			}
		}
	}
	if hasGroup {
		gid, ok := parseID(group)
		if !ok {
			return who, &failure{what: "group " + strconv.Quote(group) + ": not in the image's /etc/group", code: 126}
		}
		who.gid = gid
	}
	return who, nil
}

func parseID(text string) (uint32, bool) {
	id, err := strconv.ParseUint(text, 10, 32)
	return uint32(id), err == nil && id != math.MaxUint32 // (uid_t)-1 means "leave it"
}

// records reads a file of colon-separated lines with at least min fields. What is not a regular file, and
// might never end, is none.
func records(name string, min int) [][]string {
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(file, maxUserFile))
	var all [][]string
	for _, line := range strings.Split(string(text), "\n") {
		if fields := strings.Split(line, ":"); len(fields) >= min {
			all = append(all, fields)
		}
	}
	return all
}
