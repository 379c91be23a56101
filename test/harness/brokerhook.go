package harness

import (
	"slices"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// brokerHook connects the embedded MQTT server to its Broker. Each method runs on the goroutine of the connection it
// is about, but for OnClientExpired, which the server's housekeeping calls.
type brokerHook struct {
	mqtt.HookBase
	b   *Broker
	run *brokerRun
}

func (h *brokerHook) ID() string { return "harness" }

func (h *brokerHook) Provides(kind byte) bool {
	return slices.Contains([]byte{
		mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablish, mqtt.OnPacketEncode,
		mqtt.OnPacketSent, mqtt.OnPublish, mqtt.OnPublished, mqtt.OnWill, mqtt.OnWillSent, mqtt.OnDisconnect,
		mqtt.OnClientExpired,
	}, kind)
}

func (h *brokerHook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (h *brokerHook) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }

// OnConnect hangs or refuses where the test asked for it.
func (h *brokerHook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	c, ok := cl.Net.Conn.(*brokerConn)
	if !ok {
		return packets.ErrImplementationSpecificError
	}
	if hung := h.b.hanging(); hung != nil {
		select {
		case <-hung:
		case <-c.closing:
		}
		return packets.ErrServerBusy
	}
	code := h.b.refusal()
	if code == 0 {
		return nil
	}
	code = connackCode(code, cl.Properties.ProtocolVersion)
	r := connectRecord(cl, c, pk)
	r.Event, r.Code = EventRefuse, code
	h.b.addRecord(r)
	err := cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ReasonCode: code})
	if err == nil {
		c.linger()
	}
	return packets.Code{Code: code, Reason: "refused on request"}
}

// connackCode gives code in the form of the client's protocol version (MQTT 5.0 §3.2.2.2, 3.1.1 §3.2.2.3).
func connackCode(code, version byte) byte {
	if version == 5 {
		if code < 0x80 {
			return map[byte]byte{1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}[code]
		}
		return code
	}
	switch {
	case code < 0x80:
		return code
	case code == 0x84:
		return 1
	case code == 0x85:
		return 2
	case code == 0x86:
		return 4
	case code == 0x87, code == 0x8A, code == 0x8C:
		return 5
	}
	return 3
}

func connectRecord(cl *mqtt.Client, c *brokerConn, pk packets.Packet) Record {
	return Record{
		Event:           EventConnect,
		ClientID:        cl.ID,
		Assigned:        pk.Connect.ClientIdentifier == "",
		Username:        string(pk.Connect.Username),
		Password:        pk.Connect.PasswordFlag,
		Remote:          cl.Net.Remote,
		ProtocolVersion: cl.Properties.ProtocolVersion,
		CleanStart:      pk.Connect.Clean,
		KeepAlive:       pk.Connect.Keepalive,
		WillTopic:       pk.Connect.WillTopic,
		WillPayload:     slices.Clone(pk.Connect.WillPayload),
		WillQoS:         pk.Connect.WillQos,
		WillRetain:      pk.Connect.WillRetain,
		ConnectSHA256:   c.connectSHA256(),
	}
}

// OnSessionEstablish takes the client identifier over in the whole cluster and notes the CONNECT, before CONNACK.
func (h *brokerHook) OnSessionEstablish(cl *mqtt.Client, pk packets.Packet) {
	c, ok := cl.Net.Conn.(*brokerConn)
	if !ok {
		return
	}
	var old *detached
	old, c.claim = h.b.domain.claim(cl.ID)
	now := time.Now()
	s := &session{
		clientID: cl.ID, username: string(pk.Connect.Username), version: cl.Properties.ProtocolVersion,
		cleanStart: pk.Connect.Clean, keepAlive: pk.Connect.Keepalive, remote: cl.Net.Remote,
		expiry: pk.Properties.SessionExpiryInterval, created: now, connectedAt: now, connected: true, cl: cl, conn: c,
	}
	if old != nil && old.persistent && !pk.Connect.Clean {
		old.stopDelayedWill()
		h.run.adopt(cl.ID, old)
		s.created = old.created
	}
	c.session = s
	h.b.addRecord(connectRecord(cl, c, pk))
	h.b.mu.Lock()
	h.run.sessions[cl.ID] = s
	h.b.mu.Unlock()
}

// OnPacketSent ends the claim once CONNACK is written: from here on the next connection of this name may take over.
func (h *brokerHook) OnPacketSent(cl *mqtt.Client, pk packets.Packet, _ []byte) {
	if pk.FixedHeader.Type != packets.Connack {
		return
	}
	if c, ok := cl.Net.Conn.(*brokerConn); ok {
		c.endClaim()
	}
}

// OnPacketEncode mends what the server would send wrongly: a server DISCONNECT and 5.0 codes have no meaning in 3.x,
// and a message expiry that nobody asked for must not appear.
func (h *brokerHook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	version := cl.Properties.ProtocolVersion
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if pk.Properties.MessageExpiryInterval > 1<<31 {
			pk.Properties.MessageExpiryInterval = 0
		}
	case packets.Disconnect:
		if version < 5 {
			pk.FixedHeader.Type = packets.Reserved // the server cannot encode it, so nothing is written
		}
	case packets.Connack:
		switch {
		case version == 5 || pk.ReasonCode < 0x80:
		case version != 3 && version != 4:
			pk.ReasonCode = 1
		case pk.ReasonCode == 0x80 && cl.Properties.Props.AssignedClientID != "":
			pk.ReasonCode = 2 // empty identifier with Clean Session 0 [MQTT-3.1.3-8]
		case pk.ReasonCode <= 0x83:
			pk.FixedHeader.Type = packets.Reserved // malformed: close without CONNACK [MQTT-3.1.4-1]
		default:
			pk.ReasonCode = connackCode(pk.ReasonCode, version)
		}
	}
	return pk
}

// OnPublish notes a message of a real client; messages of the inline client come from elsewhere in the cluster.
func (h *brokerHook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if !cl.Net.Inline {
		h.b.addMessage(messageOf(pk, cl.ID))
	}
	return pk, nil
}

func (h *brokerHook) OnPublished(cl *mqtt.Client, pk packets.Packet) {
	if !cl.Net.Inline {
		h.b.domain.forward(h.b, pk)
	}
}

// OnWill keeps the Wills of a stopping broker from everybody: a killed process publishes none. The server cannot be
// told to drop one, so it goes to a topic that no wildcard matches.
func (h *brokerHook) OnWill(_ *mqtt.Client, will mqtt.Will) (mqtt.Will, error) {
	if h.run.stopping.Load() {
		will.TopicName, will.Retain = mqtt.SysPrefix+"/harness/dropped", false
	}
	return will, nil
}

func (h *brokerHook) OnWillSent(cl *mqtt.Client, pk packets.Packet) {
	if h.run.stopping.Load() {
		return
	}
	h.b.addWill(messageOf(pk, cl.ID))
	h.b.domain.forward(h.b, pk)
}

func (h *brokerHook) OnDisconnect(cl *mqtt.Client, _ error, expire bool) {
	if c, ok := cl.Net.Conn.(*brokerConn); ok {
		c.expired = expire
	}
}

func (h *brokerHook) OnClientExpired(cl *mqtt.Client) {
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	if s := h.run.sessions[cl.ID]; s != nil && s.cl == cl && !s.connected {
		delete(h.run.sessions, cl.ID)
	}
}

func messageOf(pk packets.Packet, clientID string) Message {
	m := Message{
		Topic: pk.TopicName, Payload: slices.Clone(pk.Payload), QoS: pk.FixedHeader.Qos, Retain: pk.FixedHeader.Retain,
		ClientID: clientID, Time: time.Now(),
		Properties: MessageProperties{
			ExpirySeconds: pk.Properties.MessageExpiryInterval, ContentType: pk.Properties.ContentType,
			ResponseTopic: pk.Properties.ResponseTopic, CorrelationData: slices.Clone(pk.Properties.CorrelationData),
		},
	}
	if pk.Properties.PayloadFormatFlag {
		m.Properties.PayloadFormat = &pk.Properties.PayloadFormat
	}
	for _, u := range pk.Properties.User {
		m.Properties.User = append(m.Properties.User, UserProperty{Key: u.Key, Value: u.Val})
	}
	return m
}

// packet turns m into the form the embedded server publishes.
func (m Message) packet() packets.Packet {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: m.QoS, Retain: m.Retain},
		TopicName:   m.Topic,
		Payload:     m.Payload,
		Properties: packets.Properties{
			MessageExpiryInterval: m.Properties.ExpirySeconds, ContentType: m.Properties.ContentType,
			ResponseTopic: m.Properties.ResponseTopic, CorrelationData: m.Properties.CorrelationData,
		},
	}
	if f := m.Properties.PayloadFormat; f != nil {
		pk.Properties.PayloadFormat, pk.Properties.PayloadFormatFlag = *f, true
	}
	for _, u := range m.Properties.User {
		pk.Properties.User = append(pk.Properties.User, packets.UserProperty{Key: u.Key, Val: u.Value})
	}
	return pk
}
