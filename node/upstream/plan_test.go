package upstream

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"turnout/fsm"
)

// cluster builds a stored cluster from words "name/state", such as "a/up".
func stored(driver string, nodes string) *fsm.Cluster {
	states := map[string]fsm.NodeState{"up": fsm.NodeUp, "down": fsm.NodeDown, "suspect": fsm.NodeSuspect}
	c := &fsm.Cluster{ID: 1, Name: "west", Spec: fsm.DefaultSpec(), NodesVersion: 7}
	c.Spec.Driver, c.Spec.RemoveAfter = driver, 3
	for i, w := range strings.Fields(nodes) {
		name, state, _ := strings.Cut(w, "/")
		c.Nodes = append(c.Nodes, fsm.Node{ID: fsm.NodeID(i + 1), Name: fsm.NodeName(name), Address: name + ":1883", State: states[state]})
	}
	return c
}

// listed builds an answer from the same words; a state of its own, "bad", is an entry with a problem.
func listed(nodes string) []Member {
	var out []Member
	for _, n := range stored("", nodes).Nodes {
		m := Member{Name: n.Name, Address: n.Address, State: n.State}
		if n.State == 0 {
			m = Member{Name: n.Name, Problem: "a bad name"}
		}
		out = append(out, m)
	}
	return out
}

// numbers reads words "name=3" into a map.
func numbers[V ~uint8 | ~uint32](words string) map[fsm.NodeName]V {
	out := map[fsm.NodeName]V{}
	for w := range strings.FieldsSeq(words) {
		name, value, _ := strings.Cut(w, "=")
		var v int
		fmt.Sscan(value, &v)
		out[fsm.NodeName(name)] = V(v)
	}
	return out
}

// script writes a plan as words: "+a/up" for an upsert, "-a" for a removal, "held:a", "alarm:kind".
func script(p PlanResult) string {
	var out []string
	if p.Change != nil {
		for _, u := range p.Change.Upsert {
			w := "+" + string(u.Name) + "/" + u.State.String()
			if u.Address != string(u.Name)+":1883" {
				w += "@" + u.Address
			}
			out = append(out, w)
		}
		for _, n := range p.Change.Remove {
			out = append(out, "-"+string(n))
		}
	}
	for _, n := range p.Held {
		out = append(out, "held:"+string(n))
	}
	for _, a := range p.Alarms {
		out = append(out, "alarm:"+string(a.Kind))
	}
	return strings.Join(out, " ")
}

func TestPlan(t *testing.T) {
	const silent, answers, refused = int(ProbeSilent), int(ProbeAnswered), int(ProbeRefused)
	p := func(format string, args ...any) string { return fmt.Sprintf(format, args...) }
	tests := []struct {
		name                           string
		stored, answer, misses, probes string
		removed                        int
		driver                         string
		table                          map[fsm.NodeName]string
		want                           string
	}{
		{name: "nothing new", stored: "a/up b/down", answer: "a/up b/down", want: ""},
		{name: "first members", answer: "a/up b/down c/suspect", want: "+a/up +b/down +c/suspect"},
		{name: "one more", stored: "a/up", answer: "a/up b/up", want: "+b/up"},
		{name: "stopped", stored: "a/up b/up", answer: "a/up b/down", want: "+b/down"},
		{name: "started again", stored: "a/up b/down", answer: "a/up b/up", want: "+b/up"},
		{name: "missing once is suspect", stored: "a/up b/up", answer: "a/up", misses: "b=1", want: "+b/suspect"},
		{name: "a stopped one missing is suspect", stored: "a/up b/down", answer: "a/up", misses: "b=1", want: "+b/suspect"},
		{name: "missing again writes nothing", stored: "a/up b/suspect", answer: "a/up", misses: "b=2", want: ""},
		{name: "back again", stored: "a/up b/suspect", answer: "a/up b/up", want: "+b/up"},
		{name: "gone", stored: "a/up b/suspect", answer: "a/up", misses: "b=3", probes: p("b=%d", silent), want: "-b"},
		{name: "gone for longer", stored: "a/up b/suspect", answer: "a/up", misses: "b=300", probes: p("b=%d", silent), want: "-b"},
		{name: "silent but not missing for long", stored: "a/up b/suspect", answer: "a/up", misses: "b=2", probes: p("b=%d", silent), want: ""},
		{name: "silent but listed", stored: "a/up b/up", answer: "a/up b/up", misses: "b=9", probes: p("b=%d", silent), want: ""},
		{name: "missing for long but answers", stored: "a/up b/suspect", answer: "a/up", misses: "b=3", probes: p("b=%d", answers), want: "alarm:unlisted"},
		{name: "missing for long, may not be probed", stored: "a/up b/suspect", answer: "a/up", misses: "b=3", probes: p("b=%d", refused), want: "alarm:probe_refused"},
		{name: "missing for long, not probed", stored: "a/up b/suspect", answer: "a/up", misses: "b=3", want: ""},
		{name: "never seen suspect before it is gone", stored: "a/up b/up", answer: "a/up", misses: "b=3", probes: p("b=%d", silent), want: "-b"},
		{name: "one goes, another comes", stored: "a/up b/suspect", answer: "a/up c/up", misses: "b=3", probes: p("b=%d", silent), want: "+c/up -b"},
		{name: "two of four at once are held", stored: "a/up b/up c/suspect d/suspect", answer: "a/up b/up", misses: "c=3 d=3",
			probes: p("c=%d d=%d", silent, silent), want: "held:c held:d alarm:removal_held"},
		{name: "held ones still become suspect", stored: "a/up b/up c/up d/up", answer: "a/up b/up", misses: "c=3 d=3",
			probes: p("c=%d d=%d", silent, silent), want: "+c/suspect +d/suspect held:c held:d alarm:removal_held"},
		{name: "one silent, one answering", stored: "a/up b/up c/suspect d/suspect", answer: "a/up b/up", misses: "c=3 d=3",
			probes: p("c=%d d=%d", silent, answers), want: "-c alarm:unlisted"},
		{name: "all but one", stored: "a/up b/suspect c/suspect d/suspect", answer: "a/up", misses: "b=3 c=3 d=3",
			probes: p("b=%d c=%d d=%d", silent, silent, silent), want: "held:b held:c held:d alarm:removal_held"},
		{name: "a quarter of eight", stored: "a/up b/up c/up d/up e/up f/up g/suspect h/suspect", answer: "a/up b/up c/up d/up e/up f/up",
			misses: "g=3 h=3", probes: p("g=%d h=%d", silent, silent), want: "-g -h"},
		{name: "more than a quarter of eight", stored: "a/up b/up c/up d/up e/up f/suspect g/suspect h/suspect", answer: "a/up b/up c/up d/up e/up",
			misses: "f=3 g=3 h=3", probes: p("f=%d g=%d h=%d", silent, silent, silent), want: "held:f held:g held:h alarm:removal_held"},
		{name: "one was removed shortly before", stored: "a/up b/suspect", answer: "a/up", misses: "b=3", probes: p("b=%d", silent), removed: 1,
			want: "held:b alarm:removal_held"},
		{name: "the quota of eight is used up in two steps", stored: "a/up b/up c/up d/up e/up f/up g/up h/suspect", answer: "a/up b/up c/up d/up e/up f/up g/up",
			misses: "h=3", probes: p("h=%d", silent), removed: 1, want: "-h"},
		{name: "and then it is used up", stored: "a/up b/up c/up d/up e/up f/up g/up h/suspect", answer: "a/up b/up c/up d/up e/up f/up g/up",
			misses: "h=3", probes: p("h=%d", silent), removed: 2, want: "held:h alarm:removal_held"},
		{name: "the last stored one under a new name", stored: "a/suspect", answer: "b/up", misses: "a=3", probes: p("a=%d", silent), want: "+b/up -a"},
		{name: "an entry with a problem adds nothing", stored: "a/up", answer: "a/up x/bad y/bad", want: "alarm:invalid_entry"},
		{name: "an entry with a problem is not missing", stored: "a/up b/up", answer: "a/up b/bad", misses: "b=9", probes: p("b=%d", silent), want: "alarm:invalid_entry"},
		{name: "address of a missing one mended by the operator", stored: "a/up b/suspect", answer: "a/up", misses: "b=2",
			table: map[fsm.NodeName]string{"b": "10.0.0.2:1883"}, want: "+b/suspect@10.0.0.2:1883"},
		{name: "static: taken out of the table", stored: "a/up b/up c/up", answer: "a/up", driver: fsm.DriverStatic, want: "-b -c"},
		{name: "static: changed from discovery", stored: "a/suspect b/down", answer: "a/up c/up", driver: fsm.DriverStatic, removed: 5, want: "+a/up +c/up -b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			driver := tt.driver
			if driver == "" {
				driver = fsm.DriverEMQX
			}
			in := PlanInput{Cluster: stored(driver, tt.stored), Answer: listed(tt.answer), Misses: numbers[uint32](tt.misses),
				Probes: numbers[ProbeResult](tt.probes), Removed: tt.removed}
			in.Cluster.Spec.Addresses = tt.table
			got := Plan(in)
			if s := script(got); s != tt.want {
				t.Fatalf("got  %q\nwant %q", s, tt.want)
			}
			if got.Change == nil {
				return
			}
			if got.Change.Cluster != "west" || got.Change.IfNodesVersion == nil || *got.Change.IfNodesVersion != 7 {
				t.Errorf("the change is not guarded: %+v", got.Change)
			}
			if err := got.Change.Validate(); err != nil {
				t.Error(err)
			}
			if want := len(got.Change.Upsert) + len(got.Change.Remove); len(got.Reasons) != want {
				t.Errorf("%d reasons for %d changes", len(got.Reasons), want)
			}
			if again := Plan(in); !cmp.Equal(got, again) {
				t.Error("the same input gives another plan")
			}
		})
	}
}

func TestPlanChangedAddress(t *testing.T) {
	in := PlanInput{Cluster: stored(fsm.DriverEMQX, "a/up"), Answer: []Member{{Name: "a", State: fsm.NodeUp, Address: "10.0.0.1:1883"}}}
	if s := script(Plan(in)); s != "+a/up@10.0.0.1:1883" {
		t.Fatal(s)
	}
}

func TestPlanBoundsMembers(t *testing.T) {
	var words []string
	for i := range fsm.MaxClusterNodes - 1 {
		words = append(words, fmt.Sprintf("n%d/up", i))
	}
	have := strings.Join(words, " ")
	in := PlanInput{Cluster: stored(fsm.DriverEMQX, have), Answer: listed(have + " x/up y/up")}
	if s := script(Plan(in)); s != "+x/up alarm:too_many_nodes" {
		t.Fatal(s)
	}
}

// A quarter, rounded down, but one at least.
func TestQuota(t *testing.T) {
	for n, want := range map[int]int{0: 1, 1: 1, 4: 1, 7: 1, 8: 2, 11: 2, 12: 3, 200: 50} {
		if got := Quota(n); got != want {
			t.Errorf("of %d: got %d, want %d", n, got, want)
		}
	}
}

func TestAlarmQuotesNames(t *testing.T) {
	in := PlanInput{Cluster: stored(fsm.DriverEMQX, "a/up"), Answer: append(listed("a/up"), Member{Name: fsm.NodeName("x\n" + strings.Repeat("y", 1000)), Problem: "a bad name"})}
	got := Plan(in).Alarms
	if len(got) != 1 || strings.Contains(got[0].Detail, "\n") || len(got[0].Detail) > 256 {
		t.Fatalf("got %+v", got)
	}
}
