// Package fsm holds the replicated tables of a Turnout cluster: broker clusters and their nodes, devices, settings and
// the roster of gateways. Every gateway has the whole of them in memory, so a device is routed without a network hop.
//
// The tables change in one way only: a [Command] is encoded by [Encode], travels through the Raft log and is applied by
// [Tables.Apply], which is deterministic: it reads no clock, no randomness and no local configuration. Whatever a
// command needs of those rides inside it. A refusal is a [Result] with a [Code], never a panic and never an error of the log.
//
// Reading comes in two speeds. Everything but devices is small and sits in an immutable [Topology] behind an atomic
// pointer; a device is found by [Tables.Lookup] in a copy-on-write B-tree under a read lock. Whoever must follow the
// tables (rings, discovery, events) calls [Tables.WaitTopology] or [Tables.WaitIndex] from a goroutine of its own:
// changes coalesce by index, and nothing runs under Apply.
//
// The package refuses to know where a command came from, who may send it and what follows from it. It imports nothing of
// Turnout. Errors that cross packages and gateways are declared here, once, as an [Error] with a [Code].
package fsm
