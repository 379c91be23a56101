package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"turnout/api"
	"turnout/fsm"
	"turnout/node/peer"
	"turnout/node/upstream"
	"turnout/proxy"
)

// Config is the whole configuration of a gateway: one YAML file, each part's own section in it.
type Config struct {
	Name         string `yaml:"name"`     // for people; the host name when empty
	Zone         string `yaml:"zone"`     // where it stands, for people and for spreading voters
	DataDir      string `yaml:"data_dir"` // must exist or be creatable; holds the log, snapshots and the gateway's id
	proxy.Config `yaml:",inline"`
	API          api.Config      `yaml:"api"`
	Peer         peer.Config     `yaml:"peer"`
	Upstream     upstream.Config `yaml:"upstream"`
	Bootstrap    BootstrapConfig `yaml:"bootstrap"`
	Log          LogConfig       `yaml:"log"`
}

// BootstrapConfig seeds the replicated settings once, when the cluster of gateways is founded.
type BootstrapConfig struct {
	Identity string       `yaml:"identity"` // identity template
	Unknown  PolicyConfig `yaml:"unknown"`
}

// PolicyConfig is the policy for unknown devices: refuse, cluster or weighted.
type PolicyConfig struct {
	Policy  string `yaml:"policy"`
	Cluster string `yaml:"cluster"` // for policy "cluster"
}

// LogConfig says what is logged to standard error, and how.
type LogConfig struct {
	Level  string `yaml:"level"`  // debug, info, warn or error
	Format string `yaml:"format"` // text or json
}

// DefaultConfig returns a configuration that serves on loopback alone.
func DefaultConfig() Config {
	return Config{
		DataDir:   "/var/lib/turnout",
		Config:    proxy.DefaultConfig(),
		API:       api.DefaultConfig(),
		Peer:      peer.DefaultConfig(),
		Upstream:  upstream.DefaultConfig(),
		Bootstrap: BootstrapConfig{Identity: "{client_id}", Unknown: PolicyConfig{Policy: fsm.PolicyRefuse}},
		Log:       LogConfig{Level: "info", Format: "text"},
	}
}

// EnvPrefix begins the name of every variable that sets a configuration key: TURNOUT_PEER__EXPECT=3 is peer.expect.
const EnvPrefix = "TURNOUT_"

// cliVariables share the prefix but speak to the command line client.
var cliVariables = []string{"TURNOUT_URL", "TURNOUT_TOKEN_FILE", "TURNOUT_CA_FILE", "TURNOUT_CONFIG"}

// Load reads the file at path (none when empty), lays the environment over it and validates the whole. environ has the form of
// os.Environ. An unknown key is an error that names its line or its variable.
func Load(path string, environ []string) (Config, error) {
	c := DefaultConfig()
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return c, fmt.Errorf("open configuration: %w", err)
		}
		defer f.Close()
		if err := decode(io.LimitReader(f, 1<<20), &c); err != nil {
			return c, fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := c.overlay(environ); err != nil {
		return c, err
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return c, fmt.Errorf("name: not set, and the host has no name: %w", err)
		}
		c.Name = host
	}
	return c, c.Validate()
}

// unknownKey and plain turn the decoder's words, which speak of Go types, into those of the file.
var (
	unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)
	plain      = strings.NewReplacer("yaml: unmarshal errors:\n  ", "", "yaml: ", "", "!!", "", "into time.Duration", "into a duration such as 10s")
)

// decode reads one YAML document over c, so that keys it does not name keep their value.
func decode(r io.Reader, c *Config) error {
	d := yaml.NewDecoder(r)
	d.KnownFields(true)
	if err := d.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return errors.New(plain.Replace(unknownKey.ReplaceAllString(err.Error(), "unknown key $1")))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("more than one YAML document")
	}
	return nil
}

// overlay sets keys from the environment. A list is one YAML value: TURNOUT_PEER__JOIN='[a:7401, b:7401]'.
func (c *Config) overlay(environ []string) error {
	environ = slices.Sorted(slices.Values(environ)) // the same environment always gives the same configuration
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		key, ok := strings.CutPrefix(name, EnvPrefix)
		if !ok || slices.Contains(cliVariables, name) {
			continue
		}
		var doc yaml.Node
		if err := yaml.Unmarshal([]byte(value), &doc); err != nil {
			return fmt.Errorf("%s: not a YAML value", name) // the text may be a secret: it is not repeated
		}
		node := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str"} // an empty variable is an empty string
		if len(doc.Content) == 1 {
			node = doc.Content[0]
		}
		parts := strings.Split(strings.ToLower(key), "__")
		for _, part := range slices.Backward(parts) {
			node = &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Value: part}, node}}
		}
		text, err := yaml.Marshal(node)
		if err != nil {
			return fmt.Errorf("%s: not a YAML value", name)
		}
		if err := decode(bytes.NewReader(text), c); err != nil {
			if strings.Contains(err.Error(), "unknown key") {
				return fmt.Errorf("%s: there is no configuration key %s", name, strings.Join(parts, "."))
			}
			return fmt.Errorf("%s: not a value for the configuration key %s", name, strings.Join(parts, "."))
		}
	}
	return nil
}

// Validate checks every part and returns all that is wrong, a line each. The lines name the key and the bound.
func (c *Config) Validate() error {
	var errs []error
	wrong := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	wrong(c.Name == "" || len(c.Name) > fsm.MaxNameBytes, "name: must be 1 to %d bytes", fsm.MaxNameBytes)
	wrong(len(c.Zone) > fsm.MaxNameBytes, "zone: must be at most %d bytes", fsm.MaxNameBytes)
	wrong(c.DataDir == "", "data_dir: must name a directory")
	errs = append(errs, c.Config.Validate(), c.API.Validate(), c.Peer.Validate(), c.Upstream.Validate())
	if _, err := proxy.ParseIdentity(c.Bootstrap.Identity); err != nil {
		errs = append(errs, fmt.Errorf("bootstrap.identity: %w", err))
	}
	seed := fsm.PutSettings{Identity: &c.Bootstrap.Identity, Unknown: c.Bootstrap.policy()}
	if err := seed.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("bootstrap: %w", err))
	}
	_, err := c.Log.level()
	wrong(c.Log.Format != "text" && c.Log.Format != "json", "log.format: must be text or json")
	return errors.Join(append(errs, err)...)
}

func (b BootstrapConfig) policy() *fsm.Policy {
	return &fsm.Policy{Kind: b.Unknown.Policy, Cluster: fsm.ClusterName(b.Unknown.Cluster)}
}

func (l LogConfig) level() (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		return level, errors.New("log.level: must be debug, info, warn or error")
	}
	return level, nil
}

// Logger returns the logger that the configuration asks for, writing to w.
func (l LogConfig) Logger(w io.Writer) *slog.Logger {
	level, err := l.level()
	if err != nil {
		level = slog.LevelInfo // Validate refuses it; a logger is needed all the same
	}
	options := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
