package probe

import (
	"crypto/sha256"
	"math/rand/v2"
	"unsafe"

	"golang.org/x/sys/unix"
)

func processorProbes() []Probe {
	return []Probe{
		{Name: "integer", Class: CPU, Unit: "op", setup: pinned(integer)},
		{Name: "hash", Class: CPU, Unit: "op", setup: pinned(hash)},
		{Name: "chase", Class: CPU, Unit: "op", setup: pinned(chase)},
	}
}

// sink keeps results, so that the compiler cannot leave out what makes them. Only the agent's one runner writes it.
type sink struct{ value uint64 }

// integer is a chain of shifts, additions and multiplications: 100 links an operation.
func integer(Args) (func(int) error, func() error, error) {
	s := sink{value: 88172645463325252}
	return func(n int) error {
		x := s.value
		for range 100 * n {
			x ^= x << 13
			x ^= x >> 7
			x = x*6364136223846793005 + 1442695040888963407
		}
		s.value = x
		return nil
	}, nothing, nil
}

// hash is SHA-256 of 4 KiB.
func hash(Args) (func(int) error, func() error, error) {
	block := make([]byte, 4096)
	return func(n int) error {
		for range n {
			sum := sha256.Sum256(block)
			copy(block, sum[:])
		}
		return nil
	}, nothing, nil
}

const (
	chaseBytes = 64 << 20
	cacheLine  = 64
)

// chase follows pointers through 64 MiB in an order that no prefetcher knows: the memory's latency.
func chase(Args) (func(int) error, func() error, error) {
	memory, err := smallPages(chaseBytes)
	if err != nil {
		return nil, nil, err
	}
	const lines = chaseBytes / cacheLine
	order := make([]uint32, lines)
	for i := range order {
		order[i] = uint32(i)
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same everywhere
	for i := lines - 1; i > 0; i-- {      // Sattolo's algorithm: one cycle through all
		j := random.IntN(i)
		order[i], order[j] = order[j], order[i]
	}
	next := func(line uint32) *uint32 { return (*uint32)(unsafe.Pointer(&memory[int(line)*cacheLine])) }
	for i, to := range order {
		*next(uint32(i)) = to
	}
	at := uint32(0)
	return func(n int) error {
		line := at
		for range n {
			line = *next(line)
		}
		at = line
		return nil
	}, func() error { return unix.Munmap(memory) }, nil
}

// smallPages is memory that the kernel makes no huge pages of: whether it can depends on the machine's past.
func smallPages(bytes int) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE) // a kernel without them says EINVAL
	return memory, nil
}
