package ciyaml

// The limits, GitLab's own where it has some.
const (
	maxFile       = 1 << 20 // bytes of a file
	maxIncludes   = 150     // files of a pipeline, its own not counted
	maxDepth      = 100     // of nested YAML
	maxNodes      = 500_000 // values of a file with its aliases, and of all files together with what they refer to
	maxExtends    = 11      // jobs in a chain of extends
	maxReferences = 10      // references in a chain of them
	maxNested     = 10      // lists in lists of scripts and rules
	maxParallel   = 200     // jobs made of one
	maxJobs       = 2000    // of a pipeline
	maxNeeds      = 50      // of a job
	maxName       = 255     // characters of a job's name
	maxTokens     = 100     // of an expression
	maxFiles      = 200_000 // of a repository that rules:exists looks through
	maxCaches     = 4       // of a job
	maxErrors     = 30      // that are told at once
)
