// Package harness is the world around the gateways, small enough to run inside one process: MQTT brokers that write
// down what really reached them, broker clusters that behave as one, an EMQX-5-shaped management API in front of such
// a cluster, TCP links that break on demand, real MQTT devices, and a starter for the real programs (mosquitto,
// haproxy, a built turnout) of the integration tests.
//
// Everything listens on loopback. A Broker, a ManagementAPI and a Link keep their port while they are stopped or cut,
// so "the node is back" means the same address.
//
// Data flows one way: a Device (or a gateway) connects to a Broker; the Broker notes the CONNECT before it answers it,
// so whoever holds a CONNACK can already read the record; a Cluster joins brokers, moves sessions between them and
// passes messages on; a ManagementAPI shows that Cluster to the outside. Verdicts about where a device went are read
// from Broker.Records and Broker.Seen, never from a gateway.
//
// The package refuses to know anything of ours: it imports no other package of this module, and it never imports
// testing, because the demonstration program uses it too. No record, log line or error holds a password.
package harness
