package gitlab

import "github.com/runnerd/runnerd/runner/gitlab/spec"

// concurrent is which of its runner's jobs a job is, and which of those of its project: the smallest numbers, from 0,
// that no other job has at the time (CI_CONCURRENT_ID, CI_CONCURRENT_PROJECT_ID).
type concurrent struct {
	runner, project int
	keys            [2]numbered
}

// numbered is what numbers are given for.
type numbered struct{ runner, project string }

// concurrent gives a job its numbers.
func (m *Manager) concurrent(r Registration, j *spec.Job) concurrent {
	c := concurrent{keys: [2]numbered{{runner: r.Name}, {r.Name, "of " + j.JobInfo.ProjectFullPath}}}
	m.mu.Lock()
	defer m.mu.Unlock()
	c.runner, c.project = m.number(c.keys[0]), m.number(c.keys[1])
	return c
}

// number takes the smallest. m.mu is held.
func (m *Manager) number(of numbered) (n int) {
	taken := m.numbers[of]
	if taken == nil {
		taken = map[int]bool{}
		m.numbers[of] = taken
	}
	for taken[n] {
		n++
	}
	taken[n] = true
	return n
}

// release gives the numbers back.
func (m *Manager) release(c concurrent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, n := range []int{c.runner, c.project} {
		delete(m.numbers[c.keys[i]], n)
		if len(m.numbers[c.keys[i]]) == 0 {
			delete(m.numbers, c.keys[i])
		}
	}
}
