package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "turnout"

// room is what one package of ours may import of ours, and why not more.
type room struct {
	may []string
	why string
}

// rooms lists every package with exactly what it imports of ours; one that is not listed fails the test, so that each new room says what
// it rests on.
var rooms = map[string]room{
	"fsm":                {nil, "ground floor: the tables know nobody, so that everybody can know them"},
	"proxy/mqtt":         {nil, "ground floor: the wire is a matter of the standard alone"},
	"api/client":         {nil, "ground floor: other people's programs import it and get nothing else"},
	"node/peer":          {[]string{"fsm"}, "the gateways among themselves know tables, not devices, brokers or HTTP nouns"},
	"node/upstream":      {[]string{"fsm"}, "the management side of brokers knows no gateway internals"},
	"proxy/relay":        {nil, "the relay moves bytes and must stay replaceable"},
	"proxy":              {[]string{"fsm", "proxy/mqtt", "proxy/relay"}, "the entrance decides from tables; how they replicate is not its business"},
	"api":                {[]string{"fsm", "api/client"}, "handlers speak to interfaces of their own; node fills them"},
	"node":               {[]string{"fsm", "node/peer", "node/upstream", "proxy", "api"}, "the only place where the parts meet"},
	"cmd/turnout":        {[]string{"node", "api/client"}, "the CLI is a client; only serve reaches into the product, through node"},
	"cmd/turnout-demo":   {[]string{"api/client", "test/harness", "test/harness/fleet"}, "the demo plays user, with test brokers"},
	"test/harness":       {nil, "brokers and clients as the outside world sees them"},
	"test/harness/fleet": {[]string{"node", "api/client", "test/harness"}, "whole gateways in one process, for the demo and the journeys"},
	"test":               {nil, "journeys live in test files only"},
	"test/integration":   {nil, "real processes, seen from outside only"},
}

// owners says which packages may import a library that shapes the architecture.
var owners = map[string]struct {
	rooms []string
	why   string
}{
	"github.com/hashicorp/raft":                               {[]string{"fsm", "node/peer"}, "consensus stays behind Propose"},
	"github.com/hashicorp/raft-boltdb/v2":                     {[]string{"node/peer"}, "nobody else owns the log"},
	"github.com/hashicorp/memberlist":                         {[]string{"node/peer"}, "gossip is a hint for peers, never a source of routes"},
	"github.com/buraksezer/consistent":                        {[]string{"proxy"}, "one place computes owners, so all gateways agree"},
	"github.com/go-chi/chi/v5":                                {[]string{"api"}, "one router"},
	"github.com/danielgtaylor/huma/v2":                        {[]string{"api"}, "one description of the API"},
	"github.com/mochi-mqtt/server/v2":                         {[]string{"test/harness"}, "no embedded broker in the product"},
	"github.com/anishathalye/porcupine":                       {[]string{"test"}, "a checker of histories is for tests"},
	"github.com/eclipse/paho.golang":                          {[]string{"node/upstream", "test/harness"}, "the gateway is no MQTT client but on the command channel"},
	"github.com/eclipse/paho.mqtt.golang":                     {[]string{"node/upstream", "test/harness"}, "the gateway is no MQTT client but on the command channel"},
	"testing":                                                 {nil, "what is not a test file must not link the test framework"},
	"github.com/prometheus/client_golang/prometheus/promauto": {nil, "metrics are registered where they are told to, never globally"},
}

// TestImportsGoDownOnly walks every non-test file and holds it against the rooms and owners above.
func TestImportsGoDownOnly(t *testing.T) {
	root := ".."
	used := map[string]map[string]bool{}
	for path, file := range sources(t, root) {
		dir, _ := filepath.Rel(root, filepath.Dir(path))
		r, known := rooms[dir]
		if !known {
			t.Errorf("%s: package %s is in no room; say in this test what it may import, and why", path, dir)
			continue
		}
		if used[dir] == nil {
			used[dir] = map[string]bool{}
		}
		for _, imp := range file.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if ours, ok := strings.CutPrefix(name, module+"/"); ok {
				used[dir][ours] = true
				if !slices.Contains(r.may, ours) {
					t.Errorf("%s imports %s: %s", path, ours, r.why)
				}
			}
			for lib, o := range owners {
				if (name == lib || strings.HasPrefix(name, lib+"/")) && !slices.Contains(o.rooms, dir) {
					t.Errorf("%s imports %s: %s", path, name, o.why)
				}
			}
		}
	}
	for dir, r := range rooms {
		for _, name := range r.may {
			if !used[dir][name] {
				t.Errorf("%s may import %s and does not: a fence is as narrow as it can be", dir, name)
			}
		}
	}
}

// TestEveryPackageSaysWhatItIs wants one doc comment for each package.
func TestEveryPackageSaysWhatItIs(t *testing.T) {
	docs := map[string]int{}
	for path, file := range sources(t, "..") {
		dir := filepath.Dir(path)
		docs[dir] += 0
		if file.Doc != nil && len(file.Doc.Text()) > 80 {
			docs[dir]++
		}
	}
	for dir, n := range docs {
		if n != 1 {
			t.Errorf("%s: %d package doc comments, want one", dir, n)
		}
	}
}

// sources parses every Go file below root that is not a test.
func sources(t *testing.T, root string) map[string]*ast.File {
	t.Helper()
	files := map[string]*ast.File{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ImportsOnly|parser.ParseComments)
		if err == nil {
			files[path] = f
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
