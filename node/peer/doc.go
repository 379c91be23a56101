// Package peer is the gateways among themselves: it makes one cluster of them. It owns the Raft node that replicates the
// tables of package fsm, Raft's transport and stores, the forwarding of writes to the leader, and the gossip that lets
// gateways find each other.
//
// # One port, a handshake before anything else
//
// Gateways talk over one TCP port (with TLS 1.3 in both directions unless told otherwise). A connection begins with a
// hello that names the cluster, the sender and the gateway it is meant for; a gateway that is not meant, is of another
// cluster or was not admitted yet refuses before Raft or HTTP sees a byte. An address of Raft's is therefore written
// "<gateway id>@<host:port>": the dialer knows whom to ask for, and a gateway with an empty disk that stands at an old
// voter's address is not taken for that voter. After the handshake the connection belongs to Raft (purpose 1) or to the
// HTTP server of the calls between gateways (purpose 2).
//
// # How a gateway becomes a member
//
// A gateway without data looks at gossip. It joins the cluster that it sees there; if it sees none, and as many empty
// gateways as `expect` says agree, the one with the lowest id of all asks each for a promise and then hands the
// same list of voters to every voter (bootstrap.go). Joining is a call to the leader, which adds the newcomer as a
// non-voter (join.go). Non-voters become voters only by the leader's duty in promote.go, up to 3 or 5. Raft is started
// only with Raft data on disk, with the bootstrap's list of voters, or right after a leader admitted this gateway.
//
// # A write
//
// [Peer.Propose] encodes the command, applies it if this gateway leads or sends the same bytes once to the one that
// does, which checks them as it would its own, and waits until its own tables reach the index. Nothing that was sent is
// ever sent again: an outcome that was not learned is reported as unknown.
//
// Gossip is a hint: it never adds, promotes or removes anybody by itself. The package refuses to know what the
// commands mean, except for Init and the roster of gateways, which are its own.
package peer
