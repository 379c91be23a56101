package upstream

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"turnout/fsm"
)

// Outcome is what is known about a command after it was handed over. The set is closed; the texts are the API's.
type Outcome string

// The outcomes.
const (
	Dispatched   Outcome = "dispatched"    // the broker had a subscriber for it
	NoSubscriber Outcome = "no_subscriber" // the broker took it, and nobody is subscribed
	Accepted     Outcome = "accepted"      // the broker took it and does not tell more
	Offline      Outcome = "offline"       // the broker took it and says that the device is not connected
	Rejected     Outcome = "rejected"      // certainly not taken: refused here or by the broker, or never handed over
	Unknown      Outcome = "unknown"       // it may or may not have been taken: no answer in time
)

// Result is the outcome with a sentence for people, in words of this package.
type Result struct {
	Outcome Outcome
	Detail  string
	// unsent marks a rejection before anything left the gateway: trying again with the same ID is then welcome.
	unsent bool
}

// rejected is a result for what the gateway itself refuses or cannot hand over.
func rejected(detail string) Result { return Result{Outcome: Rejected, Detail: detail, unsent: true} }

// Parts are the fields of a device's CONNECT as far as they are known; empty when not.
type Parts struct {
	ClientID string
	Username string
}

// Target is the device and where it is at home.
type Target struct {
	Key     fsm.DeviceKey
	Parts   Parts
	Cluster *fsm.Cluster
	Node    fsm.Node // the device's node; zero when it has none
}

// Command is what the cloud wants a device to get.
type Command struct {
	// ID makes the command idempotent on this gateway: for 10 minutes the same device, ID and payload give the earlier result
	// without sending again. 0–128 bytes of printable text; empty for none.
	ID            string
	Payload       []byte  // at most Channel.MaxBytes
	QoS           *uint8  // 0 or 1, nil for the channel's
	ExpirySeconds *uint32 // nil for the channel's
}

const (
	maxIDBytes      = 128
	maxTopicBytes   = 65535 // MQTT 5.0 §1.5.4
	commandTimeout  = 10 * time.Second
	maxInFlight     = 256
	idempotencyTime = 10 * time.Minute
	idempotencySize = 10_000
)

// CommanderOptions are what a Commander needs; all fields are.
type CommanderOptions struct {
	Tables *fsm.Tables
	Guard  *Guard
	// Gateway tells this gateway's id, which is asked for when the first MQTT connection opens; its first eight characters are part
	// of the client identifiers.
	Gateway func() fsm.GatewayID
	Logger  *slog.Logger
	Metrics *Metrics
	Now     func() time.Time
}

// Commander hands commands for devices to their cluster's channel. It may be used by any number of goroutines.
type Commander struct {
	o      CommanderOptions
	http   *httpClient
	mqtt   *mqttPool
	recent *recentCommands
	slots  chan struct{} // one for each command on its way

	ctx    context.Context // of the commands on their way and of follow
	cancel context.CancelFunc

	mu     sync.Mutex // guards closed, and wg.Add against Close
	closed bool
	wg     sync.WaitGroup
}

// NewCommander returns a commander that opens nothing before Open or Send.
func NewCommander(o CommanderOptions) *Commander {
	ctx, cancel := context.WithCancel(context.Background())
	return &Commander{
		o: o, http: newHTTPClient(o.Guard), mqtt: newMQTTPool(o), recent: newRecentCommands(o.Now),
		slots: make(chan struct{}, maxInFlight), ctx: ctx, cancel: cancel,
	}
}

// Open starts following the tables, so that connections to nodes and clusters that are gone are closed.
func (c *Commander) Open() { c.spawn(c.follow) }

// Close ends commands on their way, closes every connection and waits for all goroutines. It can be called more than once.
func (c *Commander) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	c.mqtt.close()
	c.http.close()
}

// spawn runs f in a goroutine that Close waits for; false after Close.
func (c *Commander) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// follow closes MQTT connections that nobody needs: idle ones, and those of nodes and clusters that left the tables.
func (c *Commander) follow() {
	known := map[fsm.ClusterName]bool{}
	topo := c.o.Tables.Topology()
	for {
		c.mqtt.sweep(topo)
		for name := range known {
			if topo.Cluster(name) == nil {
				delete(known, name)
				c.o.Metrics.commands.DeletePartialMatch(map[string]string{"cluster": string(name)})
			}
		}
		for _, cluster := range topo.Clusters {
			known[cluster.Name] = true
		}
		ctx, cancel := context.WithTimeout(c.ctx, sweepPeriod)
		next, err := c.o.Tables.WaitTopology(ctx, topo)
		cancel()
		if c.ctx.Err() != nil {
			return
		}
		if err == nil {
			topo = next
		}
	}
}

// Send hands a command over and returns what is known afterwards. A command that is on its way goes on when ctx ends: the caller then
// gets Unknown, and a second call with the same ID the true outcome.
func (c *Commander) Send(ctx context.Context, t Target, cmd Command) Result {
	if t.Cluster == nil {
		return rejected("the device has no cluster")
	}
	r := c.send(ctx, t, cmd)
	kind := t.Cluster.Spec.Channel.Kind
	if kind == fsm.ChannelNone {
		kind = "none"
	}
	c.o.Metrics.commands.WithLabelValues(string(t.Cluster.Name), kind, string(r.Outcome)).Inc()
	return r
}

func (c *Commander) send(ctx context.Context, t Target, cmd Command) Result {
	m, why := prepare(t, cmd)
	if why != "" {
		return rejected(why)
	}
	flight, first, why := c.recent.begin(t.Key, cmd.ID, cmd.Payload)
	if why != "" {
		return rejected(why)
	}
	if first && !c.launch(flight, t, m) {
		c.recent.finish(flight, rejected("the gateway has too many commands on their way, or is stopping"))
	}
	select {
	case <-flight.done:
		return flight.result
	case <-ctx.Done():
	}
	select {
	case <-flight.done: // both were ready
		return flight.result
	default:
		return Result{Outcome: Unknown, Detail: "the caller did not wait for the answer"}
	}
}

// launch carries the command out in a goroutine of its own; false when there is no room for it.
func (c *Commander) launch(f *flight, t Target, m message) bool {
	select {
	case c.slots <- struct{}{}:
	default:
		return false
	}
	ok := c.spawn(func() {
		defer func() { <-c.slots }()
		ctx, cancel := context.WithTimeout(c.ctx, commandTimeout)
		defer cancel()
		r := c.handOver(ctx, t, m)
		c.recent.finish(f, r)
		c.o.Logger.Debug("command handed over", "cluster", string(t.Cluster.Name), "outcome", string(r.Outcome), "detail", r.Detail)
	})
	if !ok {
		<-c.slots
	}
	return ok
}

func (c *Commander) handOver(ctx context.Context, t Target, m message) Result {
	if t.Cluster.Spec.Channel.Kind == fsm.ChannelEMQX {
		return c.publishEMQX(ctx, t, m)
	}
	return c.mqtt.publish(ctx, t, m)
}

// message is a command with everything filled in.
type message struct {
	id      string
	topic   string
	payload []byte
	qos     uint8
	expiry  uint32 // seconds, 0 for none
}

// prepare checks a command against its channel and fills in the topic; why is empty when all is well.
func prepare(t Target, cmd Command) (m message, why string) {
	ch := &t.Cluster.Spec.Channel
	m = message{id: cmd.ID, payload: cmd.Payload, qos: ch.QoS, expiry: ch.ExpirySeconds}
	if cmd.QoS != nil {
		m.qos = *cmd.QoS
	}
	if cmd.ExpirySeconds != nil {
		m.expiry = *cmd.ExpirySeconds
	}
	switch {
	case ch.Kind != fsm.ChannelEMQX && ch.Kind != fsm.ChannelMQTT:
		return m, "the device's cluster has no command channel"
	case len(cmd.Payload) > int(ch.MaxBytes):
		return m, "the payload is larger than the channel takes"
	case m.qos > 1:
		return m, "the QoS must be 0 or 1"
	case cmd.ID != "" && (len(cmd.ID) > maxIDBytes || !printable(cmd.ID)):
		return m, "the command id must be at most 128 bytes of printable text"
	}
	m.topic, why = fillTopic(ch.Topic, t)
	return m, why
}

// fillTopic puts the device into the template. Text of the device must not turn the topic into a filter, nor move it into
// the name space behind '$' that brokers keep for themselves (MQTT 5.0 §4.7).
func fillTopic(template string, t Target) (topic, why string) {
	values := []struct{ placeholder, value, name string }{
		{"{key}", string(t.Key), "the device key"},
		{"{client_id}", t.Parts.ClientID, "the client identifier"},
		{"{username}", t.Parts.Username, "the user name"},
	}
	pairs := make([]string, 0, 2*len(values))
	for _, v := range values {
		pairs = append(pairs, v.placeholder, v.value)
		if !strings.Contains(template, v.placeholder) {
			continue
		}
		switch {
		case v.value == "":
			return "", v.name + " is part of the topic and not known"
		case strings.ContainsAny(v.value, "+#\x00") || !utf8.ValidString(v.value):
			return "", v.name + " cannot be part of a topic name"
		}
	}
	topic = strings.NewReplacer(pairs...).Replace(template)
	switch {
	case len(topic) > maxTopicBytes:
		return "", "the topic is longer than MQTT allows"
	case strings.HasPrefix(topic, "$") && !strings.HasPrefix(template, "$"):
		return "", "the device would make the topic begin with $"
	}
	return topic, ""
}
