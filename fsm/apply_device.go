package fsm

// refuseItem is a refusal about one element of a batch.
func refuseItem(i int, code Code, field, message string) Result {
	return Result{Code: code, Field: field, Item: i, Message: message}
}

func (t *Tables) applyPutDevices(index uint64, c *PutDevices) Result {
	topo := t.topo.Load()
	pending := make(map[DeviceKey]row, len(c.Changes)) // computed but not yet written: a later element of the batch sees it
	for i := range c.Changes {
		ch := &c.Changes[i]
		old, ok := pending[ch.Key]
		if !ok {
			old, _ = t.devices.rows.Get(ch.Key)
		}
		if !ch.Key.Valid() {
			return refuseItem(i, CodeInvalid, "key", "is not a device key")
		}
		if stale(ch.IfVersion, old.version) {
			return conflict(ch.IfVersion, i)
		}
		r, refused := changeRow(topo, old, ch, i)
		if refused.Code != CodeOK {
			return refused
		}
		r.version = index
		pending[ch.Key] = r
	}
	for i := range c.Changes { // in the order of the batch: a map's own order is not the same everywhere
		key := c.Changes[i].Key
		t.devices.put(key, pending[key])
	}
	return Result{Version: index}
}

// changeRow returns the row after the operator's change, or the refusal.
func changeRow(topo *Topology, r row, ch *DeviceChange, item int) (row, Result) {
	if ch.Cluster != nil {
		var id ClusterID
		if *ch.Cluster != "" {
			cluster := topo.Cluster(*ch.Cluster)
			if cluster == nil {
				return r, refuseItem(item, CodeInvalid, "cluster", "no such cluster")
			}
			id = cluster.ID
		}
		if id != r.cluster {
			r.pin, r.binding = 0, 0
			r.setFlag(flagPinStrict, false)
		}
		r.cluster = id
		r.setOrigin(OriginAssigned)
		if id == 0 {
			r.setOrigin(OriginNone)
		}
	}
	if ch.Pin != nil {
		r.pin = 0
		if *ch.Pin == "" {
			r.setFlag(flagPinStrict, false)
		} else {
			cluster := topo.ClusterByID(r.cluster)
			if cluster == nil {
				return r, refuseItem(item, CodeInvalid, "pin", "a device without a cluster cannot be pinned to a node")
			}
			node, ok := cluster.NodeByName(*ch.Pin)
			if !ok {
				return r, refuseItem(item, CodeInvalid, "pin", "no such node in the device's cluster")
			}
			r.pin = node.ID
		}
	}
	if ch.PinStrict != nil {
		if *ch.PinStrict && r.pin == 0 {
			return r, refuseItem(item, CodeInvalid, "pin_strict", "needs a pin")
		}
		r.setFlag(flagPinStrict, *ch.PinStrict)
	}
	if ch.Blocked != nil {
		r.setFlag(flagBlocked, *ch.Blocked)
	}
	return r, Result{}
}

func (t *Tables) applyRemoveDevices(c *RemoveDevices) Result {
	for i, key := range c.Keys {
		r, ok := t.devices.rows.Get(key)
		if !ok {
			return refuseItem(i, CodeNotFound, "key", "no such device")
		}
		if stale(c.IfVersion, r.version) {
			return conflict(c.IfVersion, i)
		}
	}
	for _, key := range c.Keys {
		t.devices.remove(key)
	}
	return Result{}
}

func (t *Tables) applyBind(index uint64, c *Bind) Result {
	topo := t.topo.Load()
	var res Result
	for i := range c.Bindings {
		b := &c.Bindings[i]
		cluster := topo.ClusterByID(b.Cluster)
		if cluster == nil || !b.Key.Valid() {
			res.Bind.Stale++
			continue
		}
		node, member := cluster.Node(b.Node)
		if !member {
			res.Bind.Stale++
			continue
		}
		r, ok := t.devices.rows.Get(b.Key)
		if r.flags&flagBlocked != 0 || r.cluster != 0 && r.cluster != b.Cluster {
			res.Bind.Stale++
			continue
		}
		if old, member := cluster.Node(r.binding); member && (!old.Draining || node.Draining) {
			res.Bind.Kept++
			continue
		}
		if node.Draining { // began to drain after the device had connected
			res.Bind.Stale++
			continue
		}
		switch {
		case !ok:
			res.Bind.Created++
		case r.binding != 0:
			res.Bind.Replaced++
		default:
			res.Bind.Bound++
		}
		if r.cluster == 0 {
			r.cluster = b.Cluster
			r.setOrigin(OriginPlaced)
		}
		r.binding, r.version = b.Node, index
		t.devices.put(b.Key, r)
	}
	return res
}
