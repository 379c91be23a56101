package fsm

import (
	"cmp"
	"regexp"
	"slices"
	"unicode/utf8"
)

// ClusterName is the operator's name of a broker cluster: 1–63 of a–z, 0–9 and '-', not at the ends.
type ClusterName string

// ClusterID stands for a broker cluster in device records. It is given by Apply, never reused; 0 means none.
type ClusterID uint32

// NodeName is a broker node as its own cluster calls it, such as "emqx@10.20.7.31": 1–255 bytes.
type NodeName string

// NodeID stands for one membership of one node in one cluster. It is given by Apply and never reused, not even when a node of the
// same name comes back after it was removed; 0 means none.
type NodeID uint32

// DeviceKey is what a device is known by: the identity template filled from its CONNECT. 1–256 bytes of UTF-8.
type DeviceKey string

// GatewayID is the UUID in a gateway's data directory; it is also its Raft server id.
type GatewayID string

// Bounds of the tables. They bound memory and log entries, not fleets: devices have none.
const (
	MaxKeyBytes     = 256
	MaxNameBytes    = 255
	MaxURLBytes     = 2048
	MaxClusters     = 1024
	MaxClusterNodes = 200
	MaxGateways     = 1024
	MaxBatch        = 4096 // elements of one batch command
)

// Drivers: how the members of a broker cluster are found.
const (
	DriverStatic = "static" // the address table of the spec is the member list
	DriverEMQX   = "emqx"   // EMQX 5 and 6, REST API
)

// Channels: how a command reaches a device through its home cluster.
const (
	ChannelNone = ""
	ChannelEMQX = "emqx" // the broker's own HTTP publish API
	ChannelMQTT = "mqtt" // an MQTT connection that the gateway holds
)

// ClusterSpec is what an operator says about a broker cluster.
type ClusterSpec struct {
	Driver         string   `cbor:"1,keyasint"`           // DriverStatic or DriverEMQX
	ManagementURLs []string `cbor:"2,keyasint,omitempty"` // http(s), tried in order; no user info
	Credential     string   `cbor:"3,keyasint,omitempty"` // "env:NAME" or "file:/path" holding "key:secret"; never a literal
	PollSeconds    uint32   `cbor:"4,keyasint"`           // 1–3600
	RemoveAfter    uint32   `cbor:"5,keyasint"`           // consecutive polls a member must be missing before it is gone, 2–1000
	Port           uint16   `cbor:"6,keyasint"`           // MQTT port of a node without an entry in Addresses
	// Addresses maps a node's name to "host:port" where devices reach it. For DriverStatic it is the member list.
	Addresses map[NodeName]string `cbor:"7,keyasint,omitempty"`
	// Weight is this cluster's share under the weighted policy for unknown devices; 0 takes no new devices.
	Weight  uint32      `cbor:"8,keyasint"`
	Ring    RingSpec    `cbor:"9,keyasint"`
	Channel ChannelSpec `cbor:"10,keyasint"`
}

// RingSpec fixes the consistent hash of a cluster. All gateways must compute the same owners, so every input of the
// computation is replicated here (buraksezer/consistent v1 with xxhash64 is algorithm 1).
type RingSpec struct {
	Algorithm   uint8  `cbor:"1,keyasint"`
	Partitions  uint32 `cbor:"2,keyasint"` // at least 20 for each possible member
	Replication uint32 `cbor:"3,keyasint"` // points of one member on the ring
	LoadPercent uint32 `cbor:"4,keyasint"` // bound of a member's share of the mean, 110–200
}

// RingAlgorithm1 is buraksezer/consistent v1.0.0 over xxhash64.
const RingAlgorithm1 = 1

// ChannelSpec says how commands reach the devices of a cluster.
type ChannelSpec struct {
	Kind string `cbor:"1,keyasint,omitempty"` // ChannelNone, ChannelEMQX or ChannelMQTT
	// URL of the channel. ChannelEMQX: empty means the management URLs. ChannelMQTT: "mqtt://host:port"; empty
	// means the device's own node, which is right for brokers with and without clustering.
	URL           string `cbor:"2,keyasint,omitempty"`
	Credential    string `cbor:"3,keyasint,omitempty"` // as in ClusterSpec; for ChannelMQTT "user:password"
	Topic         string `cbor:"4,keyasint,omitempty"` // template; "{key}" is the device key
	QoS           uint8  `cbor:"5,keyasint"`           // 0 or 1
	ExpirySeconds uint32 `cbor:"6,keyasint"`           // message expiry, 0 for none
	MaxBytes      uint32 `cbor:"7,keyasint"`           // largest payload, 1–1 MiB
}

// NodeState is what discovery last learned of a member. No state takes a node off the ring: states only let
// a gateway try others first. Leaving the ring is leaving the table.
type NodeState uint8

// The states of a member.
const (
	NodeUp      NodeState = 1 // listed as running
	NodeDown    NodeState = 2 // listed as stopped
	NodeSuspect NodeState = 3 // missing from the last answers
)

// String returns the state as the API spells it.
func (s NodeState) String() string {
	switch s {
	case NodeUp:
		return "up"
	case NodeDown:
		return "down"
	case NodeSuspect:
		return "suspect"
	}
	return "unknown"
}

// Node is one member of a broker cluster.
type Node struct {
	ID      NodeID    `cbor:"1,keyasint"`
	Name    NodeName  `cbor:"2,keyasint"`
	Address string    `cbor:"3,keyasint"` // "host:port" for MQTT; empty while unknown
	State   NodeState `cbor:"4,keyasint"`
	// Draining nodes get no new bindings, and bindings to them are replaced by other nodes when their devices connect again.
	Draining bool   `cbor:"5,keyasint,omitempty"`
	Version  uint64 `cbor:"6,keyasint"` // Raft index of the last change
}

// Cluster is a broker cluster with its members, in the order of their ids.
type Cluster struct {
	ID      ClusterID   `cbor:"1,keyasint"`
	Name    ClusterName `cbor:"2,keyasint"`
	Spec    ClusterSpec `cbor:"3,keyasint"`
	Nodes   []Node      `cbor:"4,keyasint,omitempty"`
	Version uint64      `cbor:"5,keyasint"` // Raft index of the last change of name or spec
	// NodesVersion is the Raft index of the last change of the members; discovery writes only against the list it read.
	NodesVersion uint64 `cbor:"6,keyasint"`
	// Trouble is what keeps the leader's discovery from following the members, in words for people; empty when nothing does.
	Trouble string `cbor:"7,keyasint,omitempty"`
}

// Node returns the member with this id.
func (c *Cluster) Node(id NodeID) (Node, bool) {
	i, ok := slices.BinarySearchFunc(c.Nodes, id, func(n Node, id NodeID) int { return cmp.Compare(n.ID, id) })
	if !ok {
		return Node{}, false
	}
	return c.Nodes[i], true
}

// NodeByName returns the member with this name.
func (c *Cluster) NodeByName(name NodeName) (Node, bool) {
	i := slices.IndexFunc(c.Nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		return Node{}, false
	}
	return c.Nodes[i], true
}

// Policies for devices that no record names.
const (
	PolicyRefuse   = "refuse"   // CONNACK "not authorised"
	PolicyCluster  = "cluster"  // all to one cluster
	PolicyWeighted = "weighted" // hash of the key over the clusters by weight
)

// Policy says where unknown devices go.
type Policy struct {
	Kind    string      `cbor:"1,keyasint"`
	Cluster ClusterName `cbor:"2,keyasint,omitempty"` // for PolicyCluster
}

// Settings are the replicated settings. Secret keys the password placeholder of the identity template; it never leaves the tables.
type Settings struct {
	ClusterID string `cbor:"1,keyasint"` // of the gateway cluster, made at bootstrap
	Secret    []byte `cbor:"2,keyasint"`
	Identity  string `cbor:"3,keyasint"` // identity template
	Unknown   Policy `cbor:"4,keyasint"`
	Version   uint64 `cbor:"5,keyasint"`
}

// Gateway is one row of the roster: who belongs to this cluster of gateways, whatever gossip says at the moment.
type Gateway struct {
	ID          GatewayID `cbor:"1,keyasint"`
	Name        string    `cbor:"2,keyasint"`
	Zone        string    `cbor:"3,keyasint,omitempty"`
	PeerAddress string    `cbor:"4,keyasint"`
	APIAddress  string    `cbor:"5,keyasint,omitempty"`
	Release     string    `cbor:"6,keyasint,omitempty"` // version of the binary
	Version     uint64    `cbor:"7,keyasint"`
}

// Origin says who decided a device's cluster.
type Origin uint8

// The origins.
const (
	OriginNone     Origin = 0 // no cluster decided
	OriginAssigned Origin = 1 // an operator's assignment
	OriginPlaced   Origin = 2 // the policy's choice, recorded after the first successful CONNECT
)

// String returns the origin as the API spells it.
func (o Origin) String() string {
	switch o {
	case OriginAssigned:
		return "assigned"
	case OriginPlaced:
		return "placed"
	}
	return "none"
}

// Device is the record of one device.
type Device struct {
	Key       DeviceKey
	Cluster   ClusterID
	Origin    Origin
	Pin       NodeID // the operator's node, 0 for none
	PinStrict bool   // refuse rather than fall back
	Binding   NodeID // the node that accepted the device first, 0 for none
	Blocked   bool
	Version   uint64 // Raft index of the last change
}

var clusterNamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Valid reports whether the name may be given to a cluster.
func (n ClusterName) Valid() bool { return clusterNamePattern.MatchString(string(n)) }

// Valid reports whether the key may stand in a record: 1–256 bytes of UTF-8.
func (k DeviceKey) Valid() bool {
	return len(k) > 0 && len(k) <= MaxKeyBytes && utf8.ValidString(string(k))
}
