package container

import "sync"

// numbers hands out the numbers from 0 to below count, each to one owner. One that was released rests as long as
// possible before it is handed out again. The zero value has none.
type numbers struct {
	count int

	mu   sync.Mutex
	used map[int]string // to whom it belongs
	next int            // where to look first
}

// acquire fails if all are in use.
func (n *numbers) acquire(owner string) (number int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.count {
		number := (n.next + i) % n.count
		if _, taken := n.used[number]; !taken {
			n.take(number, owner)
			n.next = number + 1
			return number, true
		}
	}
	return 0, false
}

// claim takes a certain number, if nobody has it, and says whose it is then.
func (n *numbers) claim(number int, owner string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if other, taken := n.used[number]; taken {
		return other
	}
	n.take(number, owner)
	return owner
}

func (n *numbers) take(number int, owner string) {
	if n.used == nil {
		n.used = map[int]string{}
	}
	n.used[number] = owner
}

func (n *numbers) release(number int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.used, number)
}
