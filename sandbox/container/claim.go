package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// claimsDir holds a file for each driver of the machine, locked for as long as its process lives. It is empty
// after a boot, like everything that is claimed.
const claimsDir = "/run/runnerd-claims"

// Claim is what only one driver of a machine may have: addresses and host ids.
type Claim struct {
	Name      string       `json:"name"` // as in Config
	StateDir  string       `json:"state_dir"`
	PID       int          `json:"pid"`
	Subnet    netip.Prefix `json:"subnet"`
	FirstUID  uint32       `json:"first_uid"`
	UIDRanges int          `json:"uid_ranges"`
}

// Conflict is what stands against a Claim.
type Conflict struct{ What, Mend string }

func (c Conflict) Error() string { return c.What + ": " + c.Mend }

// Conflicts returns what stands against c on this machine: another driver, alive or killed with sandboxes left,
// that has some of its addresses or host ids, and interfaces and routes in its subnet. A driver of the same name
// is no conflict. Nothing is changed.
func Conflicts(ctx context.Context, c Claim) ([]Conflict, error) {
	if all, err := os.Open(filepath.Join(claimsDir, "lock")); err == nil { // nobody is halfway in
		defer all.Close()
		if err := unix.Flock(int(all.Fd()), unix.LOCK_SH); err != nil {
			return nil, err
		}
	}
	others, err := readClaims(claimsDir)
	if err != nil {
		return nil, err
	}
	return c.conflicts(ctx, others)
}

func (c Claim) conflicts(ctx context.Context, others []claimed) ([]Conflict, error) {
	c.Subnet = c.Subnet.Masked()
	found, err := networkInSubnet(c.Subnet)
	return slices.Concat(c.against(others), tablesInSubnet(ctx, c, others), found), err
}

// held is a Claim that is taken.
type held struct{ file *os.File }

// take takes the claim, or says all that stands against it. What a killed driver has claimed falls to c once
// nothing is left of its sandboxes.
func (c Claim) take(ctx context.Context, dir string) (_ *held, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("claim addresses and ids: %w", err)
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	all, err := lockFile(filepath.Join(dir, "lock"), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	file, err := lockFile(c.file(dir), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("another runnerd named %s is running: stop it", c.Name)
	} else if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		if info, statErr := file.Stat(); statErr == nil && info.Size() == 0 { // an earlier claim of the name stays
			err = errors.Join(err, removeFile(file.Name()))
		}
		err = errors.Join(err, file.Close())
	}()
	others, err := readClaims(dir)
	if err != nil {
		return nil, err
	}
	found, err := c.conflicts(ctx, others)
	for _, f := range found {
		err = errors.Join(err, f)
	}
	for _, o := range others {
		if err == nil && o.dead() && c.overlaps(o.Claim) {
			err = errors.Join(deleteTable(ctx, o.Name), removeFile(o.file(dir)))
		}
	}
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(c)
	if err == nil {
		err = errors.Join(file.Truncate(0), writeAll(file, append(text, '\n')))
	}
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", file.Name(), err)
	}
	return &held{file}, nil
}

func writeAll(f *os.File, text []byte) error {
	_, err := f.WriteAt(text, 0)
	return err
}

// release gives the claim up, unless something is left of the sandboxes: then it stays, as that of a killed driver
// does. It is safe to call twice.
func (h *held) release(left bool) error {
	if h.file == nil {
		return nil
	}
	file := h.file
	h.file = nil
	if left {
		return file.Close()
	}
	all, err := lockFile(filepath.Join(filepath.Dir(file.Name()), "lock"), unix.LOCK_EX)
	if err != nil {
		return errors.Join(err, file.Close())
	}
	defer all.Close()
	return errors.Join(removeFile(file.Name()), file.Close())
}

// lockFile opens a file, making it if it is not there, and locks it with flock(2).
func lockFile(name string, how int) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
	}
	return f, nil
}

func (c Claim) file(dir string) string { return filepath.Join(dir, c.Name+".json") }

// claimed is the claim of another driver.
type claimed struct {
	Claim
	alive bool
	left  int // processes of its sandboxes, if it is not alive
}

func (c claimed) dead() bool { return !c.alive && c.left == 0 }

// readClaims reads the claims in dir.
func readClaims(dir string) ([]claimed, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []claimed
	for _, name := range files {
		var c claimed
		text, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(text) == 0 { // it ended, or is about to claim
			continue
		}
		if err == nil {
			err = json.Unmarshal(text, &c.Claim)
		}
		if err != nil {
			return nil, fmt.Errorf("read the claim of another runnerd: %s: %w: remove it if no other runnerd is running", name, err)
		}
		if c.alive, err = locked(name); err != nil {
			return nil, fmt.Errorf("look whether the runnerd of %s is running: %w", name, err)
		}
		if h, err := findHierarchies(); err == nil && !c.alive {
			c.left = len(cgroup{h: h, path: "/" + c.Name}.pids())
		}
		all = append(all, c)
	}
	return all, nil
}

// locked tells whether a process holds a lock on a file. A shared lock is tried, which readers can have together.
func locked(name string) (bool, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer f.Close() // and with it the lock
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

func (c Claim) overlaps(o Claim) bool { return c.Subnet.Overlaps(o.Subnet) || c.sharesUIDs(o) }

func (c Claim) sharesUIDs(o Claim) bool {
	return int64(c.FirstUID) < o.endUID() && int64(o.FirstUID) < c.endUID()
}

// endUID is the first id behind the claimed ones.
func (c Claim) endUID() int64 { return int64(c.FirstUID) + int64(c.UIDRanges)*rangeSize }

const mendSubnet = "set network.subnet to one that nobody uses"

// against compares c with what others have.
func (c Claim) against(others []claimed) []Conflict {
	var found []Conflict
	for _, o := range others {
		if o.Name == c.Name || o.dead() {
			continue
		}
		who, instead := fmt.Sprintf("another runnerd (pid %d, state directory %s)", o.PID, o.StateDir), ""
		if !o.alive {
			who = fmt.Sprintf("a runnerd that was killed (state directory %s) has left %d processes in its sandboxes and", o.StateDir, o.left)
			instead = ", or start that one again, which removes them"
		}
		if c.Subnet.Overlaps(o.Subnet) {
			found = append(found, Conflict{fmt.Sprintf("subnet %s: %s has %s", c.Subnet, who, o.Subnet), mendSubnet + instead})
		}
		if c.sharesUIDs(o.Claim) {
			found = append(found, Conflict{
				fmt.Sprintf("uids %d-%d: %s has %d-%d", c.FirstUID, c.endUID()-1, who, o.FirstUID, o.endUID()-1),
				"set uid_range.first and uid_range.count to ids that nobody uses" + instead,
			})
		}
	}
	return found
}

// tablesInSubnet finds nftables tables of drivers that have made no claim, and drop what goes to c's subnet.
func tablesInSubnet(ctx context.Context, c Claim, others []claimed) []Conflict {
	list, err := exec.CommandContext(ctx, "nft", "list", "tables", "inet").Output()
	if err != nil {
		return nil // whoever makes the table will say what is wrong with nft
	}
	var found []Conflict
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || !strings.HasPrefix(fields[2], "runnerd") || fields[2] == c.Name ||
			slices.ContainsFunc(others, func(o claimed) bool { return o.Name == fields[2] }) {
			continue
		}
		rules, err := exec.CommandContext(ctx, "nft", "list", "table", "inet", fields[2]).Output()
		if err != nil {
			continue // it is gone
		}
		for word := range strings.FieldsSeq(string(rules)) {
			if p, err := netip.ParsePrefix(word); err == nil && p.Overlaps(c.Subnet) {
				found = append(found, Conflict{
					fmt.Sprintf("subnet %s: the nftables table %s of another runnerd drops what goes to %s", c.Subnet, fields[2], p),
					fmt.Sprintf("%s, or run \"nft delete table inet %s\" if that runnerd is gone", mendSubnet, fields[2]),
				})
				break
			}
		}
	}
	return found
}

func deleteTable(ctx context.Context, name string) error {
	return nft(ctx, fmt.Sprintf("table inet %[1]s\ndelete table inet %[1]s", name))
}

// networkInSubnet finds addresses and routes of the machine's that a subnet would take traffic from. What bears
// the subnet's first address is our own. A route that is wider than the subnet, such as a VPN's to 10.0.0.0/8,
// stays of use for all other addresses.
func networkInSubnet(subnet netip.Prefix) ([]Conflict, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	var found []Conflict
	known := map[string]bool{}
	for _, i := range interfaces {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || !p.Addr().Is4() || !p.Overlaps(subnet) {
				continue
			}
			known[i.Name] = true
			if p.Addr() != subnet.Addr().Next() {
				found = append(found, Conflict{fmt.Sprintf("subnet %s overlaps with the address %s of %s", subnet, p, i.Name), mendSubnet})
			}
		}
	}
	text, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return found, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range parseRoutes(string(text)) {
		if !known[r.device] && r.to.Bits() >= subnet.Bits() && r.to.Overlaps(subnet) {
			found = append(found, Conflict{fmt.Sprintf("subnet %s: %s is routed to %s", subnet, r.to, r.device), mendSubnet})
		}
	}
	return found, nil
}

type route struct {
	to     netip.Prefix
	device string
}

// parseRoutes reads /proc/net/route, whose addresses are in hexadecimal, the bytes in the machine's order (proc(5)).
func parseRoutes(text string) []route {
	var all []route
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		var to, mask uint32
		if len(f) < 8 {
			continue
		}
		if _, err := fmt.Sscanf(f[1]+" "+f[7], "%x %x", &to, &mask); err != nil {
			continue // the heading
		}
		bytes := func(n uint32) [4]byte { return [4]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)} }
		m := bytes(mask)
		bits, _ := net.IPMask(m[:]).Size()
		all = append(all, route{netip.PrefixFrom(netip.AddrFrom4(bytes(to)), bits), f[0]})
	}
	return all
}
