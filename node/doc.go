// Package node joins the parts of a gateway: tables, peers, brokers' management side, device entrance and admin API. It is the
// only place where they meet, and it owns the small adapters between them.
//
// [Load] reads the configuration: the file, then the environment over it, then one validator for the whole. [New] allocates the parts,
// [Node.Open] starts them in the order in which they need each other, [Node.Close] stops devices first and peers last: no new ones are accepted,
// sessions and requests end, then the gateway leaves its peers. Leader duties run only while this gateway leads.
//
// The package refuses to decide anything that belongs to a part: it holds no routing, no HTTP nouns and no Raft.
package node
