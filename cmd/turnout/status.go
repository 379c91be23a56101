package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"turnout/api/client"
)

func (a *app) statusCommand() *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Show what one gateway says of itself and its tables", Args: cobra.NoArgs}
	return a.clientCommand(c, func(ctx context.Context, cl *client.Client, _ []string) error {
		s, err := cl.Status(ctx)
		if err != nil {
			return err
		}
		if a.output == outputJSON {
			return a.printJSON(s)
		}
		leader := s.Leader
		switch leader {
		case "":
			leader = "none: writes wait"
		case s.ID:
			leader = "this gateway"
		}
		return a.printFields([]field{
			{"name", s.Name}, {"id", s.ID}, {"release", s.Release}, {"state", s.State}, {"leader", leader},
			{"term", number(s.Raft.Term)}, {"members", fmt.Sprintf("%d voters, %d non-voters", s.Raft.Voters, s.Raft.Nonvoters)},
			{"last contact", lastContact(s.Raft.LastContactSeconds)}, {"commit index", number(s.Raft.CommitIndex)}, {"applied index", number(s.Raft.AppliedIndex)},
			{"tables", fmt.Sprintf("index %d, checksum %s", s.Index, s.Checksum)}, {"halted", s.Halted},
			{"clusters", number(s.Clusters)}, {"devices", number(s.Devices)},
		})
	})
}

func lastContact(seconds float64) string {
	if seconds < 0 {
		return "never"
	}
	return fmt.Sprintf("%.3g s ago", seconds)
}
