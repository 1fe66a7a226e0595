package initd

import (
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// maxUserFile bounds how much of /etc/passwd and /etc/group is read, in bytes.
const maxUserFile = 1 << 20

// identity is who a process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// lookUser resolves "user", "uid", "user:group" or "uid:gid" with the sandbox's own files; "" is root.
func lookUser(text string) (identity, error) {
	user, group, hasGroup := strings.Cut(text, ":")
	if user == "" {
		user = "0"
	}
	who := identity{home: "/"}
	name := ""
	found := false
	for _, f := range records("/etc/passwd", 6) { // name:password:uid:gid:gecos:home:shell (passwd(5))
		if f[0] == user || f[2] == user {
			uid, err1 := parseID(f[2])
			gid, err2 := parseID(f[3])
			if err1 == nil && err2 == nil {
				who.uid, who.gid, who.home, name, found = uid, gid, f[5], f[0], true
				break
			}
		}
	}
	if !found {
		uid, err := parseID(user)
		if err != nil {
			return who, fmt.Errorf("user %q: not in the image's /etc/passwd", user)
		}
		who.uid = uid
		if uid == 0 {
			who.home = "/root"
		}
	}
	for _, f := range records("/etc/group", 4) { // name:password:gid:members (group(5))
		gid, err := parseID(f[2])
		if err != nil {
			continue
		}
		if hasGroup && (f[0] == group || f[2] == group) {
			who.gid, hasGroup = gid, false
		}
		if name != "" && slices.Contains(strings.Split(f[3], ","), name) {
			who.groups = append(who.groups, gid)
		}
	}
	if hasGroup {
		gid, err := parseID(group)
		if err != nil {
			return who, fmt.Errorf("group %q: not in the image's /etc/group", group)
		}
		who.gid = gid
	}
	return who, nil
}

func parseID(text string) (uint32, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	if err == nil && id == math.MaxUint32 {
		err = strconv.ErrRange // (uid_t)-1 means "leave it"
	}
	return uint32(id), err
}

// records reads a file of colon-separated lines with at least min fields.
func records(name string, min int) [][]string {
	file, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer file.Close()
	text, _ := io.ReadAll(io.LimitReader(file, maxUserFile))
	var all [][]string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Split(strings.TrimSuffix(line, "\n"), ":"); len(fields) >= min {
			all = append(all, fields)
		}
	}
	return all
}
