package budget

import (
	"container/heap"
	"math"
	"time"
)

// What it takes to have an entry again, whatever it is: to ask for it and to begin (refetchFixed), and then to load
// or make it at so many bytes a second (refetchRate). They weigh entries against each other; nothing is promised.
const (
	refetchFixed = 2 * time.Second
	refetchRate  = 50 << 20
)

// minSpan is the least time that a rate of use is computed over, so that what was made a moment ago does not count
// as used all the time.
const minSpan = time.Minute

// value is what keeping one byte of the entry is worth: the seconds of work that it saves a second, a byte.
//
// How often the entry will be used is estimated twice, from its whole life and from the time since it was used last;
// value takes the geometric mean. So much use long ago does not keep an entry, and neither does one use just now.
// What a use saves is the time to have the entry again. The time has a fixed part, so that of two entries that are
// used alike the larger one is worth less a byte.
func value(e Entry, now time.Time) float64 {
	lived := max(now.Sub(e.Created), minSpan).Seconds()
	idle := max(now.Sub(e.LastUse()), minSpan).Seconds()
	rate := math.Sqrt(float64(e.Uses+1) / lived / idle)
	size := float64(max(e.Bytes, 1))
	return rate * (refetchFixed.Seconds() + size/refetchRate) / size
}

// key names an entry of all stores.
type key struct{ store, id string }

// candidate is an entry that may be removed once nobody stands on it.
type candidate struct {
	store string
	Entry
	value float64
}

// order is a heap of the entries that can be removed now, the least valuable first.
type order struct {
	ready    []candidate
	all      map[key]candidate // that may be removed
	standing map[key]int       // how many entries keep one from being removed
}

// newOrder takes the entries of all stores. may says which can be removed at all; an entry that may not, or that is
// in use, keeps what it needs.
func newOrder(stores map[string][]Entry, now time.Time, may func(store string, e Entry) bool) *order {
	o := &order{all: map[key]candidate{}, standing: map[key]int{}}
	for store, entries := range stores {
		for _, e := range entries {
			for _, need := range e.Needs {
				o.standing[key{store, need}]++
			}
			if !e.InUse && may(store, e) {
				o.all[key{store, e.ID}] = candidate{store, e, value(e, now)}
			}
		}
	}
	for k, c := range o.all {
		if o.standing[k] == 0 {
			o.ready = append(o.ready, c)
		}
	}
	heap.Init(o)
	return o
}

// next takes the least valuable entry that nothing stands on, as if it were removed.
func (o *order) next() (candidate, bool) {
	if len(o.ready) == 0 {
		return candidate{}, false
	}
	c := heap.Pop(o).(candidate)
	for _, need := range c.Needs {
		k := key{c.store, need}
		o.standing[k]--
		if below, ok := o.all[k]; ok && o.standing[k] == 0 {
			heap.Push(o, below)
		}
	}
	return c, true
}

// Len, Less, Swap, Push and Pop are heap.Interface.
func (o *order) Len() int { return len(o.ready) }

func (o *order) Less(i, j int) bool {
	a, b := o.ready[i], o.ready[j]
	switch {
	case a.value != b.value:
		return a.value < b.value
	case !a.LastUse().Equal(b.LastUse()): // within minSpan all are worth the same
		return a.LastUse().Before(b.LastUse())
	case a.store != b.store:
		return a.store < b.store
	}
	return a.ID < b.ID
}

func (o *order) Swap(i, j int) { o.ready[i], o.ready[j] = o.ready[j], o.ready[i] }
func (o *order) Push(x any)    { o.ready = append(o.ready, x.(candidate)) }

func (o *order) Pop() any {
	last := o.ready[len(o.ready)-1]
	o.ready = o.ready[:len(o.ready)-1]
	return last
}
