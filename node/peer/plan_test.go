package peer

import (
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

func TestPlanPromotions(t *testing.T) {
	voter := func(id raft.ServerID) standing { return standing{id: id, voter: true, fit: true} }
	fit := func(id raft.ServerID) standing { return standing{id: id, fit: true} }
	unfit := func(id raft.ServerID) standing { return standing{id: id} }
	for _, c := range []struct {
		name    string
		servers []standing
		target  int
		want    []raft.ServerID
	}{
		{"alone", []standing{voter("a")}, 3, nil},
		{"one candidate waits for a second", []standing{voter("a"), fit("b")}, 3, nil},
		{"one of two not fit", []standing{voter("a"), fit("b"), unfit("c")}, 3, nil},
		{"two go together", []standing{voter("b"), fit("c"), fit("a")}, 3, []raft.ServerID{"a", "c"}},
		{"more than needed stay", []standing{voter("a"), fit("d"), fit("c"), fit("b")}, 3, []raft.ServerID{"b", "c"}},
		{"full", []standing{voter("a"), voter("b"), voter("c"), fit("d"), fit("e")}, 3, nil},
		{"three to five", []standing{voter("a"), voter("b"), voter("c"), fit("d"), fit("e")}, 5, []raft.ServerID{"d", "e"}},
		{"three to five needs two", []standing{voter("a"), voter("b"), voter("c"), fit("d")}, 5, nil},
		{"even is made odd", []standing{voter("a"), voter("b"), fit("c"), fit("d")}, 3, []raft.ServerID{"c"}},
		{"four of five", []standing{voter("a"), voter("b"), voter("c"), voter("d"), fit("e"), fit("f")}, 5, []raft.ServerID{"e"}},
		{"even without candidate", []standing{voter("a"), voter("b"), unfit("c")}, 3, nil},
		{"above target", []standing{voter("a"), voter("b"), voter("c"), voter("d"), fit("e")}, 3, nil},
		{"an even number above the target grows no further", []standing{voter("a"), voter("b"), voter("c"), voter("d")}, 3, nil},
		{"nobody", nil, 3, nil},
	} {
		if got := planPromotions(c.servers, c.target); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	for expect, want := range map[int]int{1: 3, 3: 3, 5: 5} {
		if got := voterTarget(expect); got != want {
			t.Errorf("target for expect %d is %d, want %d", expect, got, want)
		}
	}
}
