// Package proxy is the entrance for devices: it accepts connections, reads the CONNECT, decides from the tables in
// memory which broker cluster and which node of it the device belongs to, and carries the connection there.
//
// It owns the listeners, the routing view, the passive health of broker nodes, the sessions and the queue of bindings.
// It refuses to change a packet, to answer in a broker's place once one has answered, and to write to the tables in any
// way but a Bind command. It keeps no device waiting for a write.
//
// One CONNECT flows through the files like this:
//
//	listener.go  accept, PROXY header, TLS; a deadline runs until CONNACK
//	session.go   read and parse CONNECT, refuse what can't be routed
//	identity.go  user name, password and client identifier become the device key
//	view.go      the immutable routing view: topology, rings, identity template
//	ring.go      hash of the key → members of the cluster, in order
//	decide.go    record, policy, pin, binding, ring → a Decision; explain.go tells it to people
//	health.go    nodes that did not answer lately are tried later
//	upstream.go  dial, hand over the CONNECT, wait for the answer, or take the next node
//	early.go     what the device sends meanwhile
//	bindings.go  CONNACK success → the binding, batched, through the Proposer
//	relay        the bytes, both ways, until one side ends; registry.go knows the session until then
//
// Who closes a connection: serve closes the device's until it is handed to the relay, try closes the broker's unless it
// returns it, and the relay closes both.
package proxy
