// Package upstream is the broker clusters' management side: it finds the members of every broker cluster and hands
// commands for devices to the cluster's channel.
//
// Discovery is a duty of the Raft leader: [Manager.Run] keeps one poll loop for each cluster of the tables. A poll gathers
// (the answer of a [Driver], how often in a row each member was missing, whether a missing one still answers MQTT), plans
// with the pure function [Plan], and acts by proposing one fsm.UpdateNodes that holds changes only and is guarded by the version
// of the list that the plan was made from. A poll that fails or names nobody changes nothing. Absence makes a member
// suspect; only absence over many polls together with silence on its MQTT port removes it, and never many at once.
//
// Commands go the other way, on every gateway: [Commander.Send] fills the channel's topic template, hands the payload to
// the broker's publish API or to an MQTT connection that it holds, and says truthfully what is known afterwards.
//
// Every connection is dialed through a [Guard], which looks at the resolved address at the moment of dialing. Answers are
// bounded in size and time, redirects and proxy settings of the environment are not followed. Errors carry a [Class] and words
// of this package, never a broker's text, a raw connection error, a credential or a payload.
//
// The package refuses to decide where a device belongs, to store anything of its own, and to change a broker cluster.
package upstream
