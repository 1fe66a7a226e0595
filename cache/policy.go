package cache

// Policy says what a job does with a cache, in GitLab's words (its documentation, cache:policy).
type Policy string

// The policies. The zero Policy is PullPush.
const (
	Pull     Policy = "pull"
	Push     Policy = "push"
	PullPush Policy = "pull-push"
)

// Pulls reports whether the cache is restored before the script.
func (p Policy) Pulls() bool { return p != Push }

// Pushes reports whether it is saved after it.
func (p Policy) Pushes() bool { return p != Pull }

// When says after which scripts a cache or artifact is saved (GitLab, cache:when and artifacts:when).
type When string

// The conditions. The zero When is OnSuccess.
const (
	OnSuccess When = "on_success"
	OnFailure When = "on_failure"
	Always    When = "always"
)

// Holds reports whether there is something to save after a script.
func (w When) Holds(succeeded bool) bool {
	switch w {
	case Always:
		return true
	case OnFailure:
		return !succeeded
	default:
		return succeeded
	}
}
