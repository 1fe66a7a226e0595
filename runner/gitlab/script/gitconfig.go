package script

import (
	"fmt"
	"strings"
)

const (
	// tokenUser is the name under which GitLab takes a job's token.
	tokenUser = "gitlab-ci-token"
	// jobConfigFile lies in .git and is included by the configuration of the repository and its submodules.
	jobConfigFile = "runnerd.config"
	// credentialHelper gives git the token that the job has in its environment, and keeps it nowhere.
	credentialHelper = `!f() { if [ "$1" = get ]; then echo "password=$CI_JOB_TOKEN"; fi; }; f`
)

// repositoryConfig is a new repository's .git/config, as git init and git remote add would leave it.
func repositoryConfig(remote, objectFormat string) string {
	version, extensions := 0, ""
	if objectFormat != "" && objectFormat != "sha1" {
		version, extensions = 1, "[extensions]\n\tobjectFormat = "+configValue(objectFormat)+"\n"
	}
	return fmt.Sprintf(`[core]
	repositoryformatversion = %d
	filemode = true
	bare = false
	logallrefupdates = true
%s[remote "origin"]
	url = %s
	fetch = +refs/heads/*:refs/remotes/origin/*
[include]
	path = %s
`, version, extensions, configValue(remote), jobConfigFile)
}

// jobConfig is what git is told in the job's script, too. There is no token in it.
func (s *sources) jobConfig() string {
	var b strings.Builder
	b.WriteString("[fetch]\n\trecurseSubmodules = false\n[gc]\n\tautoDetach = false\n[credential]\n\tinteractive = never\n")
	for _, host := range s.hosts {
		fmt.Fprintf(&b, "[credential %s]\n\thelper =\n\thelper = %s\n\tusername = %s\n", configValue(host), configValue(credentialHelper), tokenUser)
		if s.Variables.Value(CAVariable) != "" {
			fmt.Fprintf(&b, "[http %s]\n\tsslCAInfo = %s\n", configValue(host), configValue(s.Variables.Get(CAVariable)))
		}
	}
	if s.Settings.ForceHTTPS && len(s.hosts) > 0 {
		host := s.Variables.Value("CI_SERVER_SHELL_SSH_HOST")
		if host == "" {
			host = s.Variables.Value("CI_SERVER_HOST")
		}
		if host == "" {
			host = s.remote.Hostname()
		}
		fmt.Fprintf(&b, "[url %s]\n", configValue(s.hosts[0]+"/"))
		insteadOf := func(from string) { fmt.Fprintf(&b, "\tinsteadOf = %s\n", configValue(from)) }
		if port := s.Variables.Value("CI_SERVER_SHELL_SSH_PORT"); port != "" && port != "22" {
			insteadOf("ssh://git@" + host + ":" + port + "/")
		} else {
			insteadOf("git@" + host + ":")
			insteadOf("ssh://git@" + host + "/")
			insteadOf("ssh://git@" + host + ":22/")
		}
	}
	return b.String()
}

// configValue quotes for a git configuration file (git-config(1), "Syntax"), a value as well as a subsection's name.
func configValue(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}
