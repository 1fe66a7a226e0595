package script

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// cleanModules leaves no configuration, hooks and locks of an earlier job in the submodules' repositories.
const cleanModules = `if [ -d "$dir/.git/modules" ]; then
	find "$dir/.git/modules" -depth \( -name hooks -type d -o -type f \( -name config -o -name '*.lock' \) \) -exec rm -rf {} +
fi
`

// submodules brings them to where the checkout wants them, or on a second try, as gitlab-runner does.
func (s *sources) submodules() {
	set := s.Settings
	foreach, update, sync := "git submodule foreach", []string{"git", "submodule", "update", "--init"}, []string{"git", "submodule", "sync"}
	message := "Updating/initializing submodules"
	if set.SubmoduleStrategy == submodulesRecursive {
		foreach += " --recursive"
		update, sync = append(update, "--recursive"), append(sync, "--recursive")
		message += " recursively"
	}
	if set.SubmoduleDepth > 0 {
		update = append(update, "--depth", strconv.Itoa(set.SubmoduleDepth))
		message += fmt.Sprintf(" with git depth set to %d", set.SubmoduleDepth)
	}
	update = append(update, set.SubmoduleFlags...)
	if len(set.SubmodulePaths) > 0 {
		update = append(append(update, "--"), set.SubmodulePaths...)
		sync = append(append(sync, "--"), set.SubmodulePaths...)
	}
	cleanFlags := set.CleanFlags
	if len(cleanFlags) == 0 {
		cleanFlags = []string{"-ffdx"}
	}
	clean := foreach + " git clean " + quoteAll(cleanFlags)
	resetHard := foreach + " git reset --hard"

	s.linef("notice '%s...'", message)
	s.linef("git submodule init")
	s.linef(`if [ -z "$fresh" ]; then %s; %s; %s; fi`, quoteAll(sync), clean, resetHard)
	s.linef("if %s; then\nnotice 'Updated submodules'\nif [ -z \"$fresh\" ]; then %s; fi", quoteAll(update), quoteAll(sync))
	s.linef("else\nwarn 'Updating submodules failed. Retrying...'")
	if slices.ContainsFunc(set.SubmoduleFlags, func(f string) bool { return strings.EqualFold(f, "--remote") }) {
		// A shallow clone has not the branch that .gitmodules may name.
		s.linef("%s git fetch origin '+refs/heads/*:refs/remotes/origin/*'", foreach)
	}
	s.linef("%s\n%s\n%s\nfi", quoteAll(sync), quoteAll(update), resetHard)
	s.linef(`if [ -z "$empty" ]; then %s; fi`, clean)
	s.linef("notice 'Configuring submodules to use parent git credentials...'")
	s.linef(`config="$dir/.git/%s" git submodule --quiet foreach --recursive 'git config include.path "$config"'`, jobConfigFile)
	if !set.SkipSmudge {
		s.linef("if command -v git-lfs >/dev/null; then\nnotice 'Pulling LFS files...'\n%s git lfs pull\nfi", foreach)
	}
}
