package fsm

import (
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Kind numbers a command. Numbers are written to disk and to other gateways: append, never renumber, never reuse.
type Kind uint16

// The kinds of commands.
const (
	KindInit          Kind = 1
	KindPutCluster    Kind = 2
	KindRemoveCluster Kind = 3
	KindUpdateNodes   Kind = 4
	KindSetNode       Kind = 5
	KindPutDevices    Kind = 6
	KindRemoveDevices Kind = 7
	KindBind          Kind = 8
	KindPutSettings   Kind = 9
	KindPutGateway    Kind = 10
	KindRemoveGateway Kind = 11
	KindNoteDiscovery Kind = 12
)

// Command is one change of the tables. Validate checks everything that does not depend on the tables; it is called by
// Encode at the gateway that proposes. Apply checks what does depend on them, the same way on every gateway.
type Command interface {
	Kind() Kind
	Validate() error
}

// Init gives an empty set of tables its identity and first settings. Once tables have a cluster id it changes nothing.
type Init struct {
	Settings Settings `cbor:"1,keyasint"`
}

// PutCluster adds a broker cluster or replaces its spec. A renewed spec keeps ids, nodes and devices.
type PutCluster struct {
	Name      ClusterName `cbor:"1,keyasint"`
	Spec      ClusterSpec `cbor:"2,keyasint"`
	IfVersion *uint64     `cbor:"3,keyasint,omitempty"` // nil: any; 0: must not exist; otherwise: must equal
}

// RemoveCluster removes a cluster that no device and no policy refers to.
type RemoveCluster struct {
	Name      ClusterName `cbor:"1,keyasint"`
	IfVersion *uint64     `cbor:"2,keyasint,omitempty"`
}

// NodeChange is what discovery learned of one member.
type NodeChange struct {
	Name    NodeName  `cbor:"1,keyasint"`
	Address string    `cbor:"2,keyasint"`
	State   NodeState `cbor:"3,keyasint"`
}

// UpdateNodes writes what discovery found: members that are new or changed, and members that are gone.
type UpdateNodes struct {
	Cluster ClusterName  `cbor:"1,keyasint"`
	Upsert  []NodeChange `cbor:"2,keyasint,omitempty"`
	Remove  []NodeName   `cbor:"3,keyasint,omitempty"`
	// IfNodesVersion guards the list that the plan was made from; nil: any.
	IfNodesVersion *uint64 `cbor:"4,keyasint,omitempty"`
}

// SetNode changes what the operator decides about a member.
type SetNode struct {
	Cluster   ClusterName `cbor:"1,keyasint"`
	Node      NodeName    `cbor:"2,keyasint"`
	Draining  bool        `cbor:"3,keyasint"`
	IfVersion *uint64     `cbor:"4,keyasint,omitempty"`
}

// DeviceChange is the operator's word on one device. Nil fields stay as they are; a record is made where there is none.
// A change of cluster drops pin and binding; the binding survives an assignment to the cluster that the device is in.
type DeviceChange struct {
	Key       DeviceKey    `cbor:"1,keyasint"`
	Cluster   *ClusterName `cbor:"2,keyasint,omitempty"` // "" takes the assignment and everything that hangs on it away
	Pin       *NodeName    `cbor:"3,keyasint,omitempty"` // "" takes the pin away
	PinStrict *bool        `cbor:"4,keyasint,omitempty"`
	Blocked   *bool        `cbor:"5,keyasint,omitempty"`
	IfVersion *uint64      `cbor:"6,keyasint,omitempty"` // nil: any; 0: must not exist; otherwise: must equal
}

// PutDevices changes device records, all or none.
type PutDevices struct {
	Changes []DeviceChange `cbor:"1,keyasint"`
}

// RemoveDevices deletes device records, all or none. Deleting what is not there is CodeNotFound.
type RemoveDevices struct {
	Keys      []DeviceKey `cbor:"1,keyasint"`
	IfVersion *uint64     `cbor:"2,keyasint,omitempty"` // guards every key of the batch
}

// Binding says that a device was accepted by a node of a cluster. Being an array it cannot grow: an older gateway would refuse
// what a newer one applies. One more field means one more kind.
type Binding struct {
	_       struct{} `cbor:",toarray"`
	Key     DeviceKey
	Cluster ClusterID
	Node    NodeID
}

// Bind records bindings, each put-if-absent: it never moves a device that has a cluster elsewhere, never binds to a draining node, and
// replaces a binding only when its node is gone or draining. It can be applied any number of times.
type Bind struct {
	Bindings []Binding `cbor:"1,keyasint"`
}

// PutSettings changes the replicated settings. Nil fields stay.
type PutSettings struct {
	Identity *string `cbor:"1,keyasint,omitempty"`
	Unknown  *Policy `cbor:"2,keyasint,omitempty"`
	// Force lets the identity template change although devices are recorded under keys of the old one.
	Force     bool    `cbor:"3,keyasint,omitempty"`
	IfVersion *uint64 `cbor:"4,keyasint,omitempty"`
}

// PutGateway writes a row of the roster. A row that is there unchanged stays as it is, version included.
type PutGateway struct {
	Gateway Gateway `cbor:"1,keyasint"`
}

// RemoveGateway takes a gateway off the roster.
type RemoveGateway struct {
	ID GatewayID `cbor:"1,keyasint"`
}

// NoteDiscovery records what keeps discovery from following a cluster, so that every gateway can tell. It changes no version.
type NoteDiscovery struct {
	Cluster ClusterName `cbor:"1,keyasint"`
	Trouble string      `cbor:"2,keyasint,omitempty"` // empty: nothing does any more
}

// Kind implements Command.
func (*NoteDiscovery) Kind() Kind { return KindNoteDiscovery }

// Kind implements Command.
func (*Init) Kind() Kind { return KindInit }

// Kind implements Command.
func (*PutCluster) Kind() Kind { return KindPutCluster }

// Kind implements Command.
func (*RemoveCluster) Kind() Kind { return KindRemoveCluster }

// Kind implements Command.
func (*UpdateNodes) Kind() Kind { return KindUpdateNodes }

// Kind implements Command.
func (*SetNode) Kind() Kind { return KindSetNode }

// Kind implements Command.
func (*PutDevices) Kind() Kind { return KindPutDevices }

// Kind implements Command.
func (*RemoveDevices) Kind() Kind { return KindRemoveDevices }

// Kind implements Command.
func (*Bind) Kind() Kind { return KindBind }

// Kind implements Command.
func (*PutSettings) Kind() Kind { return KindPutSettings }

// Kind implements Command.
func (*PutGateway) Kind() Kind { return KindPutGateway }

// Kind implements Command.
func (*RemoveGateway) Kind() Kind { return KindRemoveGateway }

// newCommand returns an empty command of the kind, nil when this version does not know it.
func newCommand(k Kind) Command {
	switch k {
	case KindInit:
		return new(Init)
	case KindPutCluster:
		return new(PutCluster)
	case KindRemoveCluster:
		return new(RemoveCluster)
	case KindUpdateNodes:
		return new(UpdateNodes)
	case KindSetNode:
		return new(SetNode)
	case KindPutDevices:
		return new(PutDevices)
	case KindRemoveDevices:
		return new(RemoveDevices)
	case KindBind:
		return new(Bind)
	case KindPutSettings:
		return new(PutSettings)
	case KindPutGateway:
		return new(PutGateway)
	case KindRemoveGateway:
		return new(RemoveGateway)
	case KindNoteDiscovery:
		return new(NoteDiscovery)
	}
	return nil
}

// envelopeVersion is the first byte of every log entry; the kind follows as two bytes, big endian, then the body in CBOR (RFC 8949).
const (
	envelopeVersion = 1
	envelopeBytes   = 3
)

// MaxCommandBytes bounds an encoded command. Raft suggests at most 512 KiB an entry, because heartbeats share its connections.
const MaxCommandBytes = 512 << 10

var encMode, decMode = codecs()

// codecs fixes the encoding: deterministic on the way out (checksums are taken over it), bounded on the way in.
// Unknown map keys are ignored, so that a later version may add fields.
func codecs() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // constant options: cannot happen
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		MaxArrayElements: 1 << 16,
		MaxMapPairs:      1 << 16,
		MaxNestedLevels:  16,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
	}.DecMode()
	if err != nil {
		panic(err) // constant options: cannot happen
	}
	return enc, dec
}

// Encode validates the command and returns its log entry. Errors are of type *Error.
func Encode(c Command) ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	body, err := encMode.Marshal(c)
	if err != nil {
		return nil, NewError(CodeInvalid, "", "encode command: %v", err)
	}
	if len(body)+envelopeBytes > MaxCommandBytes {
		return nil, NewError(CodeInvalid, "", "command of %d bytes exceeds %d", len(body)+envelopeBytes, MaxCommandBytes)
	}
	entry := make([]byte, envelopeBytes, envelopeBytes+len(body))
	entry[0] = envelopeVersion
	binary.BigEndian.PutUint16(entry[1:], uint16(c.Kind()))
	return append(entry, body...), nil
}

// Decode reads a log entry. An entry of a later version is CodeUnsupported, a damaged one CodeInvalid. One beyond MaxCommandBytes
// counts as later: no gateway of this version writes it. Decode does not validate: who takes an entry from another gateway must.
func Decode(entry []byte) (Command, error) {
	if len(entry) < envelopeBytes {
		return nil, NewError(CodeInvalid, "", "entry of %d bytes is shorter than its envelope", len(entry))
	}
	if entry[0] != envelopeVersion {
		return nil, NewError(CodeUnsupported, "", "envelope version %d is not known to this gateway", entry[0])
	}
	if len(entry) > MaxCommandBytes {
		return nil, NewError(CodeUnsupported, "", "entry of %d bytes exceeds %d", len(entry), MaxCommandBytes)
	}
	kind := Kind(binary.BigEndian.Uint16(entry[1:]))
	c := newCommand(kind)
	if c == nil {
		return nil, NewError(CodeUnsupported, "", "command kind %d is not known to this gateway", kind)
	}
	if decMode.Unmarshal(entry[envelopeBytes:], c) != nil { // whose text may repeat values
		return nil, NewError(CodeInvalid, "", "body of command kind %d is damaged", kind)
	}
	return c, nil
}

// Outcome is how the apply of one Bind went, by number of bindings.
type Outcome struct {
	_        struct{} `cbor:",toarray"`
	Created  int      // no record before
	Bound    int      // record without a binding before
	Replaced int      // earlier node gone or draining
	Kept     int      // an earlier binding won
	Stale    int      // cluster or node gone or draining, device moved or blocked meanwhile
}

// Result is what Apply answers to the proposer.
type Result struct {
	Index   uint64  `cbor:"1,keyasint"` // Raft index of the command
	Code    Code    `cbor:"2,keyasint,omitempty"`
	Field   string  `cbor:"3,keyasint,omitempty"`
	Item    int     `cbor:"4,keyasint"` // of the refused element of a batch, otherwise -1
	Message string  `cbor:"5,keyasint,omitempty"`
	Version uint64  `cbor:"6,keyasint,omitempty"` // of the row written, or left as it was
	Bind    Outcome `cbor:"7,keyasint"`
}

// Err returns the refusal as an *Error, nil on success.
func (r Result) Err() error {
	if r.Code == CodeOK {
		return nil
	}
	return &Error{Code: r.Code, Field: r.Field, Item: r.Item, Message: r.Message}
}

// MarshalResult encodes a result for the way back to the gateway that forwarded the command.
func MarshalResult(r Result) ([]byte, error) {
	b, err := encMode.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return b, nil
}

// UnmarshalResult is the inverse of MarshalResult.
func UnmarshalResult(b []byte) (Result, error) {
	var r Result
	if err := decMode.Unmarshal(b, &r); err != nil {
		return Result{}, fmt.Errorf("decode result: %w", err)
	}
	return r, nil
}
