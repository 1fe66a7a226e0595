package main

import "github.com/spf13/cobra"

func (a *app) cacheCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Look at what is kept between jobs, and remove it",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.cacheCommands()...)
	return cmd
}

func (a *app) cacheCommands() []*cobra.Command {
	return []*cobra.Command{a.cacheDUCommand(), a.cachePruneCommand(), a.explainCommand(), a.revokeCommand()}
}
