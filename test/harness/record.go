package harness

import (
	"slices"
	"time"
)

// Event says what happened to a client at a broker.
type Event string

const (
	// EventConnect is a CONNECT that the broker accepted.
	EventConnect Event = "connect"
	// EventRefuse is a CONNECT that the broker answered with a code other than success because of Broker.Refuse.
	EventRefuse Event = "refuse"
	// EventDisconnect is the end of an accepted connection.
	EventDisconnect Event = "disconnect"
)

// Record is one line of a broker's own diary. Fields that do not belong to the event are zero.
type Record struct {
	Event    Event
	Time     time.Time
	Node     string // name of the broker that wrote the record
	ClientID string // as used by the broker; for an empty identifier in CONNECT the one it assigned
	Assigned bool   // the CONNECT held an empty client identifier
	Username string
	Password bool   // a password was present; its value is not kept
	Remote   string // address of the peer

	ProtocolVersion byte // 3, 4 or 5
	CleanStart      bool
	KeepAlive       uint16
	WillTopic       string
	WillPayload     []byte
	WillQoS         byte
	WillRetain      bool
	ConnectSHA256   string // hex SHA-256 of the CONNECT packet exactly as it arrived, fixed header included
	Code            byte   // EventRefuse: the CONNACK code sent, in the client's version

	Graceful  bool   // EventDisconnect: the client sent DISCONNECT with code 0, so its Will was dropped
	BytesIn   int64  // EventDisconnect: bytes received on the connection, CONNECT included
	BytesOut  int64  // EventDisconnect: bytes written to it, CONNACK included
	SHA256In  string // EventDisconnect: hex SHA-256 of all bytes received
	SHA256Out string // EventDisconnect: hex SHA-256 of all bytes written
}

// UserProperty is one MQTT 5.0 user property.
type UserProperty struct{ Key, Value string }

// MessageProperties are the PUBLISH properties of MQTT 5.0 §3.3.2.3 that travel from publisher to subscriber. Zero
// values mean "not present", but for PayloadFormat, where nil does.
type MessageProperties struct {
	PayloadFormat   *byte
	ExpirySeconds   uint32
	ContentType     string
	ResponseTopic   string
	CorrelationData []byte
	User            []UserProperty
}

// Message is an application message: received by a broker, received by a device, or to be published.
type Message struct {
	Topic      string
	Payload    []byte
	QoS        byte
	Retain     bool
	ClientID   string // publisher, where it is known; ignored on publishing
	Time       time.Time
	Properties MessageProperties
}

// What a broker remembers at most; a demonstration may run for days. Seen counts are exact beyond it.
const (
	maxRecords  = 1 << 18
	maxMessages = 1 << 16
)

// appendBounded appends v and forgets the oldest quarter when limit is reached.
func appendBounded[T any](s []T, v T, limit int) []T {
	if len(s) >= limit {
		s = slices.Delete(s, 0, limit/4)
	}
	return append(s, v)
}

// Records returns the diary so far, oldest first. It survives Stop and Start.
func (b *Broker) Records() []Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.records)
}

// Seen returns how many CONNECT packets of clientID this broker has accepted in its life.
func (b *Broker) Seen(clientID string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen[clientID]
}

// SeenClients returns every client identifier that this broker ever accepted, sorted.
func (b *Broker) SeenClients() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return sortedKeys(b.seen)
}

// Connected returns the client identifiers connected now, sorted.
func (b *Broker) Connected() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ids []string
	if b.run != nil {
		for id, s := range b.run.sessions {
			if s.connected {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return ids
}

// Messages returns the messages that clients published to this very broker, oldest first. Messages that came from
// another node of the cluster or from the management API are not among them. Payloads are shared: do not change them.
func (b *Broker) Messages() []Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.messages)
}

// Wills returns the Will messages that this broker published, oldest first.
func (b *Broker) Wills() []Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.wills)
}

func (b *Broker) addRecord(r Record) {
	r.Node = b.name
	r.Time = time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records = appendBounded(b.records, r, maxRecords)
	if r.Event == EventConnect {
		b.seen[r.ClientID]++
	}
}

func (b *Broker) addMessage(m Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages = appendBounded(b.messages, m, maxMessages)
}

func (b *Broker) addWill(m Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wills = appendBounded(b.wills, m, maxMessages)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
