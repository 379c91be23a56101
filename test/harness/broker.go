package harness

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
)

// ErrStopped is returned for an operation that needs a running broker.
var ErrStopped = errors.New("broker is stopped")

// BrokerOptions describe one broker node.
type BrokerOptions struct {
	Name    string       // node name in Erlang form, such as "west-1@127.0.0.1"; required
	Address string       // IPv4 host:port; "" is a free port of 127.0.0.1
	Logger  *slog.Logger // nil discards
}

// Broker is one embedded MQTT broker node (3.1, 3.1.1 and 5.0). It accepts every client name and password, keeps
// sessions in memory only, and records what reached it. All methods may be called from any goroutine.
//
// Lock order: life before mu. mu is never held while the MQTT server is called.
type Broker struct {
	name   string
	log    *slog.Logger
	domain *domain

	life   sync.Mutex // serialises Start, Stop and Close
	port   *heldPort  // guarded by life for writing; address is read through mu
	closed bool       // guarded by life
	wanted string     // address asked for

	mu       sync.Mutex
	address  string
	run      *brokerRun // nil while stopped
	refuse   byte
	hung     chan struct{} // open while the broker hangs, nil otherwise
	records  []Record
	seen     map[string]int
	messages []Message
	wills    []Message
}

// brokerRun is what lives from one Start to the next Stop. sessions is guarded by Broker.mu.
type brokerRun struct {
	server   *mqtt.Server
	inline   *mqtt.Client
	started  time.Time
	stopping atomic.Bool
	sessions map[string]*session
}

// NewBroker allocates a broker that is a cluster of its own; Start opens it.
func NewBroker(o BrokerOptions) (*Broker, error) {
	return newBroker(o, newDomain())
}

func newBroker(o BrokerOptions, d *domain) (*Broker, error) {
	if o.Name == "" {
		return nil, errors.New("check options: Name is empty")
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	b := &Broker{
		name: o.Name, log: log.With("broker", o.Name), domain: d,
		wanted: o.Address, seen: make(map[string]int),
	}
	d.add(b)
	return b, nil
}

// Name returns the node name.
func (b *Broker) Name() string { return b.name }

// Address returns host:port of the MQTT listener, "" before the first Start. It does not change over Stop and Start.
func (b *Broker) Address() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.address
}

// Running reports whether the broker is started.
func (b *Broker) Running() bool { return b.current() != nil }

func (b *Broker) current() *brokerRun {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.run
}

// Start opens the listener. Starting a running broker does nothing. After Stop it opens the same port again, with
// no session left, as a broker does that was killed and came back.
func (b *Broker) Start() error {
	b.life.Lock()
	defer b.life.Unlock()
	if b.closed {
		return fmt.Errorf("start broker: %w", ErrStopped)
	}
	if b.current() != nil {
		return nil
	}
	if b.port == nil {
		port, err := holdPort(b.wanted)
		if err != nil {
			return fmt.Errorf("start broker: %w", err)
		}
		b.port = port
	}
	ln, err := b.port.listen()
	if err != nil {
		return fmt.Errorf("start broker: %w", err)
	}

	run := &brokerRun{server: mqtt.New(serverOptions()), started: time.Now(), sessions: make(map[string]*session)}
	run.inline = run.server.NewClient(nil, mqtt.LocalListener, "harness", true)
	run.inline.Properties.ProtocolVersion = 5
	if err := run.server.AddHook(&brokerHook{b: b, run: run}, nil); err != nil {
		_ = ln.Close()
		return fmt.Errorf("add hook: %w", err)
	}
	if err := run.server.AddListener(newBrokerListener(b, run, ln)); err != nil {
		_ = ln.Close()
		return fmt.Errorf("add listener: %w", err)
	}
	b.domain.copyRetained(b, run)
	b.mu.Lock()
	b.run = run
	b.address = b.port.address
	b.mu.Unlock()
	if err := run.server.Serve(); err != nil {
		b.mu.Lock()
		b.run = nil
		b.mu.Unlock()
		_ = run.server.Close()
		return fmt.Errorf("serve mqtt: %w", err)
	}
	b.log.Info("broker started", "address", b.port.address)
	return nil
}

// serverOptions are the settings of the embedded MQTT server. Its own log is dropped: it prints whole packets.
func serverOptions() *mqtt.Options {
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumClientWritesPending = 1024
	c.MaximumPacketSize = maxPacketBytes
	// The server stamps every message with this bound; the hook removes stamps that no publisher asked for.
	c.MaximumMessageExpiryInterval = math.MaxUint32
	return &mqtt.Options{
		Capabilities:           c,
		Logger:                 slog.New(slog.DiscardHandler),
		SysTopicResendInterval: int64((24 * time.Hour).Seconds()),
	}
}

// Stop closes the listener and every connection at once, as when the process was killed: no DISCONNECT, no Will, no
// session survives. New connections are refused until Start. It returns when all connections are gone; stopping a
// stopped broker does nothing.
func (b *Broker) Stop() error {
	b.life.Lock()
	defer b.life.Unlock()
	return b.stop()
}

func (b *Broker) stop() error {
	b.mu.Lock()
	run := b.run
	b.run = nil
	b.mu.Unlock()
	if run == nil {
		return nil
	}
	run.stopping.Store(true) // from here on the hook drops Wills
	if err := run.server.Close(); err != nil {
		return fmt.Errorf("stop broker: %w", err)
	}
	b.log.Info("broker stopped")
	return nil
}

// Close stops the broker for good and gives its port back. It is idempotent.
func (b *Broker) Close() error {
	b.life.Lock()
	defer b.life.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	err := b.stop()
	if b.port != nil {
		b.port.release()
	}
	b.domain.remove(b)
	return err
}

// Refuse makes the broker answer every CONNECT with code and close. The code may be given in the 5.0 form (0x80 and
// up) or in the 3.x form (1 to 5); each client gets the form of its own version. 0 accepts again. Clients already
// connected are not touched.
func (b *Broker) Refuse(code byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = code
}

// Hang makes the broker accept TCP connections and answer nothing on new ones, as a frozen process does. Connections
// that were held are closed unread when the hanging ends. Clients already connected are not touched.
func (b *Broker) Hang(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case on && b.hung == nil:
		b.hung = make(chan struct{})
	case !on && b.hung != nil:
		close(b.hung)
		b.hung = nil
	}
}

func (b *Broker) refusal() byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refuse
}

func (b *Broker) hanging() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hung
}

// Publish publishes m to the subscribers of this broker alone and returns how many matched, sessions of disconnected
// persistent clients included. The error is ErrStopped or a rejected topic.
func (b *Broker) Publish(m Message) (matched int, err error) {
	run := b.current()
	if run == nil {
		return 0, fmt.Errorf("publish message: %w", ErrStopped)
	}
	subs := run.server.Topics.Subscribers(m.Topic)
	matched = len(subs.Subscriptions) + len(subs.Shared)
	if err := run.inject(m.packet()); err != nil {
		return 0, fmt.Errorf("publish message: %w", err)
	}
	return matched, nil
}
