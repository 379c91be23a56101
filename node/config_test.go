package node

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "turnout.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadLaysEnvironmentOverFile(t *testing.T) {
	path := write(t, `
name: from-file
data_dir: /tmp/x
listeners: [{name: mqtt, address: "127.0.0.1:1883"}]
connect_timeout: 7s
peer: {expect: 3, join: ["a:7401"]}
`)
	c, err := Load(path, []string{
		"TURNOUT_NAME=from-env", "TURNOUT_PEER__JOIN=[b:7401, c:7401]", "TURNOUT_API__ADDRESS=127.0.0.1:9999", "TURNOUT_STRICT=true",
		"TURNOUT_URL=http://127.0.0.1:1", "TURNOUT_TOKEN_FILE=/x", "PATH=/bin",
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "from-env" || c.Peer.Expect != 3 || strings.Join(c.Peer.Join, " ") != "b:7401 c:7401" || c.API.Address != "127.0.0.1:9999" || !c.Strict || c.ConnectTimeout != 7*time.Second {
		t.Errorf("loaded %+v", c)
	}
}

func TestLoadRefuses(t *testing.T) {
	const secret = "s3cret-in-the-wrong-place"
	for name, tc := range map[string]struct {
		file string
		env  []string
		want string
	}{
		"unknown key":              {"name: a\npeer: {expct: 3}\n", nil, "line 2: unknown key expct"},
		"not a duration":           {"name: a\ndial_timeout: 10\n", nil, "line 2: cannot unmarshal int `10` into a duration such as 10s"},
		"key twice":                {"name: a\nname: b\n", nil, "line 2"},
		"wrong type":               {"name: a\nstrict: 7\n", nil, "line 2"},
		"two documents":            {"name: a\n---\nname: b\n", nil, "more than one"},
		"not YAML":                 {"name: [a\n", nil, "line"},
		"unknown variable":         {"", []string{"TURNOUT_PEER__EXPCT=3"}, "TURNOUT_PEER__EXPCT: there is no configuration key peer.expct"},
		"variable of wrong type":   {"", []string{"TURNOUT_STRICT=" + secret}, "TURNOUT_STRICT: not a value"},
		"identity without part":    {"bootstrap: {identity: abc}\n", nil, "bootstrap.identity"},
		"identity without between": {"bootstrap: {identity: \"{client_id}{username}\"}\n", nil, "bootstrap.identity"},
		"policy":                   {"bootstrap: {unknown: {policy: maybe}}\n", nil, "policy"},
		"log level":                {"log: {level: loud}\n", nil, "log.level"},
		"open API":                 {"api: {address: \"0.0.0.0:8080\"}\n", nil, "api.tls"},
		"open peer port":           {"peer: {address: \"0.0.0.0:7400\", advertise: \"gw:7400\"}\n", nil, "peer.tls"},
		"no listener":              {"listeners: []\n", nil, "listeners"},
		"upstream network":         {"upstream: {allow: [everything]}\n", nil, "upstream.allow"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(write(t, tc.file), append(tc.env, "TURNOUT_DATA_DIR=/tmp/x"))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the error repeats the value: %v", err)
			}
		})
	}
}

// TestEveryKeyIsDocumented holds docs/configuration.md against the types.
func TestEveryKeyIsDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	var walk func(prefix string, ty reflect.Type)
	walk = func(prefix string, ty reflect.Type) {
		for f := range fields(ty) {
			tag, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if options == "inline" {
				walk(prefix, f.Type)
				continue
			}
			key := prefix + tag
			if tag == "" {
				t.Errorf("%s.%s has no yaml key", ty, f.Name)
			}
			inner := f.Type
			list := ""
			for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
				if inner.Kind() == reflect.Slice {
					list = "[]"
				}
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				walk(key+list+".", inner)
			} else if !strings.Contains(string(text), "`"+key+"`") && !strings.Contains(string(text), "`"+tag+"`") {
				t.Errorf("%s is not documented", key)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
}

func fields(ty reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range ty.NumField() {
			if !yield(ty.Field(i)) {
				return
			}
		}
	}
}

func TestExampleFileIsValid(t *testing.T) {
	if _, err := Load(filepath.Join("..", "deploy", "turnout.yaml"), nil); err != nil {
		t.Fatal(err)
	}
}

func TestAdvertisedAPI(t *testing.T) {
	for _, tc := range []struct{ api, advertise, want string }{
		{"127.0.0.1:8080", "", "127.0.0.1:8080"},
		{"0.0.0.0:8080", "gw-1.turnout:7400", "gw-1.turnout:8080"},
		{"[::]:8080", "[fd00::1]:7400", "[fd00::1]:8080"},
		{":8080", "", "10.0.0.7:8080"},
		{"127.0.0.1:0", "", ""},
	} {
		c := DefaultConfig()
		c.API.Address, c.Peer.Advertise, c.Peer.Address = tc.api, tc.advertise, "10.0.0.7:7400"
		if got := c.advertisedAPI(); got != tc.want {
			t.Errorf("%s with %q: %q, want %q", tc.api, tc.advertise, got, tc.want)
		}
	}
}
