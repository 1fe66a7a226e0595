package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/sandbox/engine"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "dev"

type engineInfo struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Digest  string `json:"sha256"`
	Unsafe  string `json:"unsafe,omitempty"`
}

func versionInfo() api.VersionInfo {
	v := version
	if info, ok := debug.ReadBuildInfo(); ok && v == "dev" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v = "dev+" + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return api.VersionInfo{Version: v, API: api.Version, Go: runtime.Version()}
}

func engineInfos(s engine.Set) []engineInfo {
	var out []engineInfo
	for _, e := range s.Engines() {
		i := engineInfo{Name: e.Name, Version: e.Version, Digest: e.Digest}
		for _, f := range s.Advisories() {
			if f.Engine == e {
				i.Unsafe = f.ID
			}
		}
		out = append(out, i)
	}
	return out
}

func (a *app) versionCommand() *cobra.Command {
	var engines, asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "Print versions", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo()
			var infos []engineInfo
			if engines {
				c, err := a.config()
				if err != nil {
					return err
				}
				set, err := engine.Load(c.EnginesDir)
				if err != nil {
					return err
				}
				infos = engineInfos(set)
				v.Engines = infos
			}
			if asJSON {
				return writeJSON(a.stdout, v)
			}
			if _, err := fmt.Fprintf(a.stdout, "runnerd %s (API %s, %s)\n", v.Version, v.API, v.Go); err != nil {
				return err
			}
			var rows [][]string
			for _, e := range infos {
				unsafe := ""
				if e.Unsafe != "" {
					unsafe = "UNSAFE: " + e.Unsafe
				}
				rows = append(rows, []string{e.Name, e.Version, "sha256:" + e.Digest, unsafe})
			}
			return writeTable(a.stdout, rows)
		},
	}
	cmd.Flags().BoolVar(&engines, "engines", false, "the engines' too, with their digests")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
