package proxy

import (
	"strings"
	"testing"
	"time"

	"turnout/fsm"
)

func TestExplain(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	w.assign("a", "west")
	w.bind("a", "west", "w2")
	e := w.gw.Explain(ExplainRequest{Key: "a"})
	if e.Refused != "" || e.Cluster != "west" || e.ClusterBy != "assignment" || e.NodeBy != "binding" || e.Records || len(e.Candidates) != 3 || e.Candidates[0].Name != "w2" {
		t.Errorf("%+v", e)
	}
	if e.Index != w.Topology().Index {
		t.Errorf("index %d", e.Index)
	}
	says := func(e Explanation, words ...string) {
		t.Helper()
		all := strings.Join(e.Steps, "\n")
		for _, word := range words {
			if !strings.Contains(all, word) {
				t.Errorf("no step says %q:\n%s", word, all)
			}
		}
	}
	says(e, `assigned it to the cluster "west"`, `binding names the node "w2"`, `Try 1: the node "w2"`, "Nothing is recorded")

	w.gw.health.mu.Lock()
	w.gw.health.now = func() time.Time { return time.Unix(1, 0) } // a cool-down that does not end
	w.gw.health.mu.Unlock()
	brokers["w2"].stop()
	w.connect(packet3("a"), accept3)
	e = w.gw.Explain(ExplainRequest{Key: "a"})
	if last := e.Candidates[2]; last.Name != "w2" || !last.Cooling {
		t.Errorf("%+v", e.Candidates)
	}
	says(e, "did not answer this gateway lately")

	w.apply(&fsm.SetNode{Cluster: "west", Node: "w2", Draining: true})
	e = w.gw.Explain(ExplainRequest{Key: "a"})
	if !e.Records || e.NodeBy != "ring" {
		t.Errorf("%+v", e)
	}
	says(e, "which is draining: the binding will be replaced", "recorded as its binding")

	e = w.gw.Explain(ExplainRequest{Connect: &SyntheticConnect{ClientID: "newcomer"}})
	if e.Key != "newcomer" || e.ClusterBy != "policy" || !e.Records {
		t.Errorf("%+v", e)
	}
	says(e, `template "{client_id}" gives the device key "newcomer"`, "no record of this device", `sends all of them to the cluster "west"`)

	e = w.gw.Explain(ExplainRequest{Connect: &SyntheticConnect{}})
	if e.Key != "" || e.Refused != "" || e.Records {
		t.Errorf("%+v", e)
	}
	says(e, "The key is empty")

	e = w.gw.Explain(ExplainRequest{Connect: &SyntheticConnect{ClientID: strings.Repeat("x", 300)}})
	if e.Refused != "key_too_long" {
		t.Errorf("%+v", e)
	}
	w.device(fsm.DeviceChange{Key: "a", Blocked: ptr(true)})
	e = w.gw.Explain(ExplainRequest{Key: "a"})
	if e.Refused != "blocked" || len(e.Candidates) != 0 {
		t.Errorf("%+v", e)
	}
	says(e, "it is blocked")
	w.apply(&fsm.PutSettings{Unknown: &fsm.Policy{Kind: fsm.PolicyRefuse}})
	if e = w.gw.Explain(ExplainRequest{Key: "nobody"}); e.Refused != "unknown_device" {
		t.Errorf("%+v", e)
	}
	w.apply(&fsm.PutSettings{Unknown: &fsm.Policy{Kind: fsm.PolicyWeighted}})
	says(w.gw.Explain(ExplainRequest{Key: "nobody"}), "spreads them over 1 clusters by weight")
}

// TestExplainAgreesWithTheDevicePort compares the first candidate with where a CONNECT really goes.
func TestExplainAgreesWithTheDevicePort(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		e := w.gw.Explain(ExplainRequest{Connect: &SyntheticConnect{ClientID: id}})
		w.connect(packet3(id), accept3)
		visits := brokers[string(e.Candidates[0].Name)].seen()
		if len(visits) == 0 || string(visits[len(visits)-1].c.ClientID) != id {
			t.Errorf("%s did not go to %s", id, e.Candidates[0].Name)
		}
	}
}
