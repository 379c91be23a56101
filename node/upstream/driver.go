package upstream

import (
	"cmp"
	"context"
	"slices"

	"turnout/fsm"
)

// Member is a node as its cluster's management side lists it.
type Member struct {
	Name    fsm.NodeName
	State   fsm.NodeState
	Address string // "host:port" for MQTT
	// Problem says in words of this package why the entry cannot be used; empty for a usable one. An entry with a problem
	// keeps its stored node from being missing and changes nothing else.
	Problem string
}

// Driver finds the members of one broker cluster. Members returns at least one entry or an error of type *Error: an empty
// list is an error, because it must never empty the tables.
type Driver interface {
	Members(ctx context.Context) ([]Member, error)
}

// newDriver returns the driver that the spec names.
func newDriver(spec fsm.ClusterSpec, h *httpClient) Driver {
	if spec.Driver == fsm.DriverStatic {
		return staticDriver{spec: spec}
	}
	return &emqxDriver{spec: spec, http: h}
}

// staticDriver takes the operator's address table for the member list. It does not look at the nodes: whether one answers
// is found out by the gateways that dial it.
type staticDriver struct {
	spec fsm.ClusterSpec
}

// Members implements Driver.
func (d staticDriver) Members(context.Context) ([]Member, error) {
	if len(d.spec.Addresses) == 0 {
		return nil, &Error{Class: ClassBadAnswer, Detail: "the address table is empty"}
	}
	out := make([]Member, 0, len(d.spec.Addresses))
	for name, address := range d.spec.Addresses {
		out = append(out, Member{Name: name, State: fsm.NodeUp, Address: address})
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}
