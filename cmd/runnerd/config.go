package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check and show the configuration", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	check := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Say everything that is wrong with a configuration",
		Args:  checkArgs(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				a.configPath = args[0]
			}
			if _, err := config.Load(a.configPath); err != nil {
				return usage(err)
			}
			name := a.configPath
			if name == "" {
				name = config.DefaultPath
			}
			_, err := fmt.Fprintf(a.stdout, "%s: ok\n", name)
			return err
		},
	}
	schema := &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of the configuration", Args: noArgs,
		RunE: func(*cobra.Command, []string) error { _, err := a.stdout.Write(config.Schema()); return err },
	}
	var reference bool
	show := &cobra.Command{
		Use: "show", Short: "Print the configuration that applies on this machine", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if reference {
				_, err := a.stdout.Write(config.Reference())
				return err
			}
			c, err := a.config()
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(c.YAML())
			return err
		},
	}
	show.Flags().BoolVar(&reference, "reference", false, "print every option with its default and what it means")
	cmd.AddCommand(check, schema, show)
	return cmd
}
