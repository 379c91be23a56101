package harness

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	emqxVersion = "5.8.9"
	// emqxTime is RFC 3339 with milliseconds and a numeric zone.
	emqxTime = "2006-01-02T15:04:05.000-07:00"
)

// member is a cluster node as the API sees it.
type member struct {
	*Broker
	running bool
}

// members returns the nodes that are not hidden.
func (a *ManagementAPI) members() []member {
	var list []member
	for _, n := range a.o.Cluster.Nodes() {
		a.mu.Lock()
		hidden, stopped := a.hidden[n.Name()], a.stopped[n.Name()]
		a.mu.Unlock()
		if !hidden {
			list = append(list, member{Broker: n, running: n.Running() && !stopped})
		}
	}
	return list
}

// self is the member that answers, nil when none runs.
func (a *ManagementAPI) self() *Broker {
	for _, m := range a.members() {
		if m.running {
			return m.Broker
		}
	}
	return nil
}

// nodes builds the answer of GET /nodes. A stopped core carries three keys only.
func (a *ManagementAPI) nodes() []map[string]any {
	list := []map[string]any{}
	members := a.members()
	clusterSessions := 0
	for _, m := range members {
		sessions, _ := m.sessionCounts()
		clusterSessions += sessions
	}
	for _, m := range members {
		if !m.running {
			list = append(list, map[string]any{"node": m.Name(), "node_status": "stopped", "role": "core"})
			continue
		}
		sessions, live := m.sessionCounts()
		list = append(list, map[string]any{
			"node": m.Name(), "node_status": "running", "role": "core",
			"connections": sessions, "live_connections": live, "cluster_sessions": clusterSessions,
			"load1": 0.42, "load5": 0.4, "load15": 0.37, "max_fds": 1048576,
			"memory_total": "7.75G", "memory_used": "1.02G",
			"process_available": 2097152, "process_used": 512, "uptime": m.uptime().Milliseconds(),
			"otp_release": "26.2.5.14-1/14.2.5.9", "version": emqxVersion, "edition": "Opensource",
			"sys_path": "/opt/emqx", "log_path": "log.file.enable is false, not logging to file.",
		})
	}
	return list
}

func (b *Broker) uptime() time.Duration {
	if run := b.current(); run != nil {
		return time.Since(run.started)
	}
	return 0
}

// cluster builds the answer of GET /cluster: running members only.
func (a *ManagementAPI) cluster(self *Broker) map[string]any {
	names := []string{}
	for _, m := range a.members() {
		if m.running {
			names = append(names, m.Name())
		}
	}
	return map[string]any{"name": "emqxcl", "nodes": names, "self": self.Name()}
}

// listeners builds the answer of GET /listeners. bind is that of the answering member; the ports of the others are
// not visible, as in EMQX.
func (a *ManagementAPI) listeners(self *Broker, kind string) []map[string]any {
	if kind != "" && kind != "tcp" {
		return []map[string]any{}
	}
	status := func(connections int) map[string]any {
		return map[string]any{"running": true, "max_connections": "infinity", "current_connections": connections}
	}
	perNode := []map[string]any{}
	total := 0
	for _, m := range a.members() {
		if m.running {
			_, live := m.sessionCounts()
			total += live
			perNode = append(perNode, map[string]any{"node": m.Name(), "status": status(live)})
		}
	}
	return []map[string]any{{
		"id": "tcp:default", "type": "tcp", "name": "default", "enable": true, "bind": self.Address(),
		"acceptors": 16, "number": len(perNode), "status": status(total), "node_status": perNode,
	}}
}

// status answers GET /status in text, or in JSON when asked.
func (a *ManagementAPI) status(w http.ResponseWriter, r *http.Request, self *Broker) {
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, http.StatusOK, map[string]string{
			"node_name": self.Name(), "rel_vsn": "v" + emqxVersion, "broker_status": "started", "app_status": "running",
		})
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = fmt.Fprintf(w, "Node %s is started\nemqx is running", self.Name())
}

// client answers GET and DELETE /clients/{clientid}.
func (a *ManagementAPI) client(w http.ResponseWriter, r *http.Request, id string) {
	if r.Method == http.MethodDelete {
		if !a.o.Cluster.Kick(id) {
			writeError(w, http.StatusNotFound, "CLIENTID_NOT_FOUND", "Client ID not found")
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	info, ok := a.o.Cluster.Client(id)
	if !ok {
		writeError(w, http.StatusNotFound, "CLIENTID_NOT_FOUND", "Client ID not found")
		return
	}
	writeJSON(w, http.StatusOK, clientJSON(info))
}

func clientJSON(info ClientInfo) map[string]any {
	host, portText, _ := net.SplitHostPort(info.Remote)
	port, _ := strconv.Atoi(portText)
	proto := "MQTT"
	if info.ProtocolVersion == 3 {
		proto = "MQIsdp"
	}
	c := map[string]any{
		"clientid": info.ClientID, "username": nil, "node": info.Node, "connected": info.Connected,
		"ip_address": host, "port": port, "proto_name": proto, "proto_ver": info.ProtocolVersion,
		"keepalive": info.KeepAlive, "clean_start": info.CleanStart, "expiry_interval": expiryInterval(info),
		"is_persistent": false, "durable": false, "is_expired": false, "is_bridge": false, "enable_authn": true,
		"listener": "tcp:default", "mountpoint": nil,
		"connected_at": info.ConnectedAt.UTC().Format(emqxTime), "created_at": info.Created.UTC().Format(emqxTime),
		"subscriptions_cnt": info.Subscriptions, "subscriptions_max": "infinity",
		"inflight_cnt": 0, "inflight_max": 32, "mqueue_len": 0, "mqueue_max": 1000, "mqueue_dropped": 0,
		"awaiting_rel_cnt": 0, "awaiting_rel_max": 100, "heap_size": 987, "reductions": 30211, "mailbox_len": 0,
	}
	for _, counter := range []string{
		"recv_oct", "recv_cnt", "recv_pkt", "recv_msg", "recv_msg.qos0", "recv_msg.qos1", "recv_msg.qos2",
		"recv_msg.dropped", "recv_msg.dropped.await_pubrel_timeout", "send_oct", "send_cnt", "send_pkt", "send_msg",
		"send_msg.qos0", "send_msg.qos1", "send_msg.qos2", "send_msg.dropped", "send_msg.dropped.expired",
		"send_msg.dropped.queue_full", "send_msg.dropped.too_large",
	} {
		c[counter] = 0
	}
	if info.Username != "" {
		c["username"] = info.Username
	}
	if !info.Connected {
		c["disconnected_at"] = info.DisconnectedAt.UTC().Format(emqxTime)
	}
	return c
}

// expiryInterval is the session expiry in seconds as EMQX shows it: 3.x clients without Clean Session get its default
// of two hours.
func expiryInterval(info ClientInfo) uint32 {
	if info.ProtocolVersion == 5 {
		return info.ExpirySeconds
	}
	if info.CleanStart {
		return 0
	}
	return 7200
}
