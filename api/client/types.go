package client

import "strconv"

// ClusterSpec is the operator's word on a broker cluster. What is left out takes its default, on every PUT anew.
// Bounds are those of the replicated tables; a refusal names the field and the bound.
type ClusterSpec struct {
	Driver         string            `json:"driver,omitempty" doc:"How the members are found: static (the address table) or emqx (REST API of EMQX 5 and 6)" example:"emqx"`
	ManagementURLs []string          `json:"management_urls,omitempty" doc:"http or https URLs of the broker's management API, tried in order, without user info" nullable:"false"`
	Credential     string            `json:"credential,omitempty" doc:"Where every gateway finds key:secret: env:NAME or file:/path, never the secret itself"`
	PollSeconds    *uint32           `json:"poll_seconds,omitempty" doc:"Seconds between two polls, 1 to 3600"`
	RemoveAfter    *uint32           `json:"remove_after,omitempty" doc:"Polls a member must be missing before it counts as gone, 2 to 1000"`
	Port           *uint16           `json:"port,omitempty" doc:"MQTT port of a node that the address table does not name, 1 to 65535"`
	Addresses      map[string]string `json:"addresses,omitempty" doc:"Node name to host:port where devices reach it; with driver static this is the member list"`
	Weight         *uint32           `json:"weight,omitempty" doc:"Share of unknown devices under the weighted policy, 0 to 1000000"`
	Ring           *RingSpec         `json:"ring,omitempty" doc:"Consistent hash of the members"`
	Channel        *ChannelSpec      `json:"channel,omitempty" doc:"How commands reach the devices of this cluster"`
}

// RingSpec fixes the consistent hash of a cluster's members.
type RingSpec struct {
	Algorithm   *uint8  `json:"algorithm,omitempty" doc:"Version of the algorithm, 1"`
	Partitions  *uint32 `json:"partitions,omitempty" doc:"Partitions of the ring, 4000 to 65536"`
	Replication *uint32 `json:"replication,omitempty" doc:"Points of one member on the ring, 1 to 1000"`
	LoadPercent *uint32 `json:"load_percent,omitempty" doc:"Bound of a member's share, in percent of the mean, 110 to 200"`
}

// ChannelSpec says how commands reach the devices of a cluster.
type ChannelSpec struct {
	Kind          string  `json:"kind,omitempty" doc:"emqx (the broker's HTTP publish API), mqtt (a connection held by the gateway), or left out for none"`
	URL           string  `json:"url,omitempty" doc:"emqx: left out for the management URLs; mqtt: mqtt://host:port, left out for the device's own node"`
	Credential    string  `json:"credential,omitempty" doc:"env:NAME or file:/path, as for the cluster"`
	Topic         string  `json:"topic,omitempty" doc:"Topic template; {key} stands for the device key"`
	QoS           *uint8  `json:"qos,omitempty" doc:"Quality of service, 0 or 1"`
	ExpirySeconds *uint32 `json:"expiry_seconds,omitempty" doc:"Message expiry in seconds, 0 for none"`
	MaxBytes      *uint32 `json:"max_bytes,omitempty" doc:"Largest payload in bytes, 1 to 1048576"`
}

// Cluster is a broker cluster as it is stored. Its spec may be sent back by PUT unchanged.
type Cluster struct {
	Name         string      `json:"name"`
	Spec         ClusterSpec `json:"spec"`
	Nodes        int         `json:"nodes" doc:"Number of members"`
	Devices      int         `json:"devices" doc:"Devices assigned to or placed in this cluster"`
	Version      uint64      `json:"version" doc:"Version of the spec, for If-Match"`
	NodesVersion uint64      `json:"nodes_version" doc:"Version of the member list"`
	Trouble      string      `json:"trouble,omitempty" doc:"What keeps discovery from following the members; missing when nothing does"`
}

// ClusterList is the answer to a listing of clusters, sorted by name.
type ClusterList struct {
	Items []Cluster `json:"items" nullable:"false"`
}

// Node is one member of a broker cluster.
type Node struct {
	Name     string `json:"name"`
	ID       uint32 `json:"id" doc:"Given when the node joined the table; never used again"`
	Address  string `json:"address" doc:"host:port for MQTT, empty while unknown"`
	State    string `json:"state" doc:"up, down or suspect"`
	Draining bool   `json:"draining" doc:"Gets no new devices; its devices are bound elsewhere when they connect again"`
	Version  uint64 `json:"version" doc:"For If-Match"`
}

// NodeList is the answer to a listing of nodes, in the order of their ids.
type NodeList struct {
	Items []Node `json:"items" nullable:"false"`
}

// NodePatch is the operator's word on a node.
type NodePatch struct {
	Draining *bool `json:"draining,omitempty"`
}

// NodeRef is a node as a device record names it. The record keeps an id; a node that left its cluster has no name any more.
type NodeRef struct {
	ID   uint32 `json:"id"`
	Name string `json:"name,omitempty" doc:"Missing when the node is gone"`
	Gone bool   `json:"gone,omitempty" doc:"The node is no longer a member of the cluster"`
}

// String returns the node's name, or its id when it is gone; "" for nil.
func (n *NodeRef) String() string {
	switch {
	case n == nil:
		return ""
	case n.Gone:
		return strconv.FormatUint(uint64(n.ID), 10)
	}
	return n.Name
}

// Device is the record of one device.
type Device struct {
	Key       string   `json:"key"`
	Cluster   string   `json:"cluster" doc:"Empty when no cluster is decided"`
	Origin    string   `json:"origin" doc:"Who decided the cluster: assigned (operator), placed (policy) or none"`
	Pin       *NodeRef `json:"pin,omitempty" doc:"The operator's node"`
	PinStrict bool     `json:"pin_strict" doc:"Refuse the device rather than fall back from its pin"`
	Binding   *NodeRef `json:"binding,omitempty" doc:"The node that accepted the device and that it returns to"`
	Blocked   bool     `json:"blocked"`
	Version   uint64   `json:"version" doc:"For If-Match"`
}

// DevicePage is one page of a listing. NextCursor is empty on the last page; a page may be short and still have a next.
type DevicePage struct {
	Items      []Device `json:"items" nullable:"false"`
	NextCursor string   `json:"next_cursor,omitempty"`
}

// DevicePut is the operator's whole word on a device: what is left out is taken away, the cluster with all that hangs on it included.
type DevicePut struct {
	Cluster   string `json:"cluster,omitempty" doc:"Name of a cluster; left out: no assignment, and a recorded placement goes too"`
	Pin       string `json:"pin,omitempty" doc:"Name of a node of that cluster"`
	PinStrict bool   `json:"pin_strict,omitempty" doc:"Refuse the device rather than fall back from its pin"`
	Blocked   bool   `json:"blocked,omitempty"`
}

// DevicePatch changes parts of a device record: what is left out stays. A record is made where there is none. At least one field is needed.
type DevicePatch struct {
	Cluster   *string `json:"cluster,omitempty" doc:"Name of a cluster; empty takes assignment or placement away"`
	Pin       *string `json:"pin,omitempty" doc:"Name of a node; empty takes the pin away"`
	PinStrict *bool   `json:"pin_strict,omitempty"`
	Blocked   *bool   `json:"blocked,omitempty"`
}

// DeviceLine is one line of an import or an export (NDJSON). In an import, fields that are left out stay as they are.
type DeviceLine struct {
	Key       string  `json:"key"`
	Cluster   *string `json:"cluster,omitempty"`
	Pin       *string `json:"pin,omitempty"`
	PinStrict *bool   `json:"pin_strict,omitempty"`
	Blocked   *bool   `json:"blocked,omitempty"`
}

// ImportResult says how far an import came. Lines are counted from 1, empty ones too.
type ImportResult struct {
	Accepted          int    `json:"accepted" doc:"Device lines committed"`
	LastCommittedLine int    `json:"last_committed_line" doc:"Every line up to this one is committed; 0 for none"`
	Index             uint64 `json:"index,omitempty" doc:"Raft index of the last committed batch"`
	// Line is the line that stopped the import, 0 when none did. Lines behind LastCommittedLine are not committed,
	// unless the problem's code is "unknown": then the batch that follows it may or may not be.
	Line    int      `json:"line,omitempty" doc:"The line that stopped the import"`
	Lagging []string `json:"lagging,omitzero" doc:"With wait=all: gateways that have not applied the import yet"`
}

// WriteResult is the answer to every write but import and command.
type WriteResult struct {
	Index   uint64   `json:"index" doc:"Raft index of the write"`
	Version uint64   `json:"version,omitempty" doc:"Version of the record now; missing after a deletion"`
	Lagging []string `json:"lagging,omitzero" doc:"With wait=all: ids of gateways that had not applied the write in time; empty when all had"`
}

// ExplainNode is one node that a device would be tried on, in order.
type ExplainNode struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	State    string `json:"state"`
	Draining bool   `json:"draining,omitempty"`
	Reason   string `json:"reason" doc:"Why it is on the list at this place: pin, binding or ring"`
}

// Explanation says where a gateway would send a device now, and why.
type Explanation struct {
	Key        string        `json:"key"`
	DerivedKey *string       `json:"derived_key,omitempty" doc:"Key that the identity template makes of the synthetic CONNECT"`
	Verdict    string        `json:"verdict" doc:"route or refuse"`
	Reason     string        `json:"reason" doc:"What decided: blocked, assigned, placed, policy, unknown, no_node ..."`
	Detail     string        `json:"detail,omitempty"`
	Cluster    string        `json:"cluster,omitempty"`
	Nodes      []ExplainNode `json:"nodes" nullable:"false" doc:"Nodes in the order they would be tried"`
	Recorded   bool          `json:"recorded" doc:"The device has a record"`
	WouldBind  bool          `json:"would_bind" doc:"A successful CONNECT would write a binding"`
	Index      uint64        `json:"index" doc:"Index of the tables that the explanation was made from"`
}

// ExplainQuery describes a synthetic CONNECT for Client.Explain. Nil fields are not part of it.
type ExplainQuery struct {
	ClientID *string
	Username *string
}

// Command is sent to a device through its home cluster's channel. Exactly one of Payload and PayloadBase64 is given.
type Command struct {
	ID            string  `json:"id,omitempty" maxLength:"128" doc:"Idempotency id; made up when left out"`
	Payload       *string `json:"payload,omitempty" doc:"Payload as text"`
	PayloadBase64 *string `json:"payload_base64,omitempty" doc:"Payload as bytes in standard base64"`
	QoS           *uint8  `json:"qos,omitempty" doc:"0 or 1; left out: the channel's"`
	ExpirySeconds *uint32 `json:"expiry_seconds,omitempty" doc:"Message expiry; left out: the channel's"`
}

// CommandResult says truthfully what happened to a command.
type CommandResult struct {
	ID      string `json:"id"`
	Outcome string `json:"outcome" doc:"dispatched, no_subscriber, accepted, offline, rejected or unknown"`
	Detail  string `json:"detail,omitempty"`
	Cluster string `json:"cluster"`
	Node    string `json:"node,omitempty"`
}

// Policy says where unknown devices go.
type Policy struct {
	Policy  string `json:"policy" doc:"refuse, cluster or weighted"`
	Cluster string `json:"cluster,omitempty" doc:"For policy cluster"`
	Version uint64 `json:"version" doc:"For If-Match; shared with the settings"`
}

// PolicyPut replaces the policy for unknown devices.
type PolicyPut struct {
	Policy  string `json:"policy" doc:"refuse, cluster or weighted"`
	Cluster string `json:"cluster,omitempty" doc:"Name of a cluster, for policy cluster only"`
}

// Settings are the replicated settings that an operator may see.
type Settings struct {
	ClusterID string `json:"cluster_id" doc:"Of the cluster of gateways"`
	Identity  string `json:"identity" doc:"Identity template: CONNECT to device key"`
	Version   uint64 `json:"version" doc:"For If-Match; shared with the policy"`
}

// SettingsPatch changes settings.
type SettingsPatch struct {
	Identity *string `json:"identity,omitempty" doc:"New identity template"`
	Force    bool    `json:"force,omitempty" doc:"Change it although devices are recorded under keys of the old one"`
}

// Gateway is one row of the roster, joined with what the asked gateway sees of it now.
type Gateway struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Zone        string `json:"zone,omitempty"`
	PeerAddress string `json:"peer_address"`
	APIAddress  string `json:"api_address,omitempty"`
	Release     string `json:"release,omitempty"`
	Role        string `json:"role" doc:"voter, nonvoter, or none when it is not a Raft member"`
	Leader      bool   `json:"leader"`
	Liveness    string `json:"liveness" doc:"alive, suspect, failed, left or unknown, as gossip has it"`
	Self        bool   `json:"self" doc:"The gateway that answered"`
	Version     uint64 `json:"version"`
}

// GatewayList is the roster, sorted by id.
type GatewayList struct {
	Items []Gateway `json:"items" nullable:"false"`
}

// RaftStatus is the consensus as the asked gateway sees it.
type RaftStatus struct {
	State              string  `json:"state" doc:"leader, follower, candidate or shutdown"`
	Term               uint64  `json:"term"`
	CommitIndex        uint64  `json:"commit_index"`
	AppliedIndex       uint64  `json:"applied_index"`
	LastContactSeconds float64 `json:"last_contact_seconds" doc:"Since the leader was last heard; 0 on the leader, negative for never"`
	Voters             int     `json:"voters"`
	Nonvoters          int     `json:"nonvoters"`
}

// Status is what one gateway says of itself and its tables. Index and Checksum belong together: gateways at the same index have the same sum.
type Status struct {
	ID       string     `json:"id"`
	Name     string     `json:"name"`
	Leader   string     `json:"leader" doc:"Id of the leader, empty when there is none"`
	State    string     `json:"state" doc:"Raft state of this gateway"`
	Index    uint64     `json:"index"`
	Checksum string     `json:"checksum" doc:"16 hexadecimal digits"`
	Devices  int        `json:"devices"`
	Clusters int        `json:"clusters"`
	Halted   string     `json:"halted,omitempty" doc:"Why the tables stopped following the log"`
	Raft     RaftStatus `json:"raft"`
	Release  string     `json:"release"`
}

// Readiness is the answer of /readyz.
type Readiness struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons" nullable:"false" doc:"Why the gateway is not ready"`
}
