package api

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"turnout/api/client"
)

func TestDecodeStrictTakesWhatIsWellFormed(t *testing.T) {
	for _, text := range []string{
		`{"key":"a"}`, ` {"key" : "\ud83d\ude00" , "blocked" : false } `, `{"key":"\\ud800"}`, `{"key":"\ufffd"}`, `{"key":"\u0000\"\\"}`, `{}`,
	} {
		var d client.DeviceLine
		if p := decodeStrict([]byte(text), &d, "line"); p != nil {
			t.Errorf("%s: %v", text, p)
		}
	}
	for _, text := range []string{`{"key":"\udc00"}`, `{"key":"\ud800\ud800"}`, `{"key":"\ud800x\udc00"}`, `{"key":"\\\ud800"}`, `{"key":"\uD83D\\uDE00"}`} {
		var d client.DeviceLine
		if p := decodeStrict([]byte(text), &d, "line"); p == nil || p.Status != 400 {
			t.Errorf("%s is taken as %q", text, d.Key)
		}
	}
}

// FuzzDecodeStrict holds it against encoding/json: what is taken has known fields only, survives a round trip and holds valid text, and a
// refusal is a 4xx with one location.
func FuzzDecodeStrict(f *testing.F) {
	for _, s := range []string{`{"key":"a","blocked":true}`, `{"key":"\ud800"}`, `{"a":[[[{}]]]}`, `{"key":1e999}`, "{\"key\":\"\xff\"}", `{} {}`, `null`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var d, again client.DeviceLine
		if p := decodeStrict(b, &d, "line"); p != nil {
			if p.Status/100 != 4 || len(p.Errors) != 1 || !strings.HasPrefix(p.Errors[0].Location, "line") || len(p.Errors[0].Location) > maxLocationBytes+4 {
				t.Fatalf("odd refusal %+v", p)
			}
			return
		}
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&again); err != nil || again.Key != d.Key || !utf8.ValidString(d.Key) {
			t.Fatalf("took what encoding/json does not: %v", err)
		}
		out, err := json.Marshal(d)
		if err != nil || decodeStrict(out, &again, "line") != nil {
			t.Fatalf("no round trip of %s", out)
		}
	})
}
