package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	c := &cobra.Command{Use: "version", Short: "Print the version of this binary", Args: cobra.NoArgs}
	a.outputFlag(c)
	c.RunE = a.verb(func(context.Context, []string) error {
		if a.output == outputJSON {
			return a.printJSON(map[string]string{"release": a.release, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
		}
		_, err := fmt.Fprintf(a.stdout, "turnout %s (%s %s/%s)\n", a.release, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	})
	return c
}

// releaseOf returns what the linker set, or what the go command recorded of the module and the commit.
func releaseOf(linked string) string {
	if linked != "unknown" {
		return linked
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return linked
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if revision == "" {
		return linked
	}
	return revision + dirty
}
