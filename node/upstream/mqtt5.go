package upstream

import (
	"context"
	"errors"
	"net"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
)

// session5 is a session of MQTT 5.0.
type session5 struct {
	client    *paho.Client
	maxPacket uint32 // what the broker takes, 0 for any
	// ended ends with the connection. The client alone would let a publish wait for its PUBACK until its time is over.
	ended context.Context
	end   context.CancelFunc
}

// connect5 implements connector.
func connect5(ctx context.Context, conn net.Conn, clientID string, cred credential) (mqttSession, Result, bool) {
	ended, end := context.WithCancel(context.Background())
	client := paho.NewClient(paho.ClientConfig{
		Conn:               conn,
		OnClientError:      func(error) { end() },
		OnServerDisconnect: func(*paho.Disconnect) { end() },
		PacketTimeout:      commandTimeout, // the contexts are shorter
		// Nothing is subscribed to; a handler keeps the client from making a router.
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(paho.PublishReceived) (bool, error) { return true, nil }},
	})
	receive, packet := uint16(16), uint32(maxInboundPacket)
	cp := &paho.Connect{
		ClientID: clientID, KeepAlive: mqttKeepAlive, CleanStart: true,
		Username: cred.key, UsernameFlag: cred.key != "", Password: []byte(cred.secret), PasswordFlag: cred.key != "",
		Properties: &paho.ConnectProperties{ReceiveMaximum: &receive, MaximumPacketSize: &packet},
	}
	// The client writes before it looks at ctx.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	ack, err := client.Connect(ctx, cp)
	late := !stop() || ctx.Err() != nil
	if err != nil || late {
		end()
	}
	switch {
	case err == nil && late:
		_ = client.Disconnect(&paho.Disconnect{})
		return nil, rejected("channel unreachable"), false
	case err == nil:
		s := &session5{client: client, ended: ended, end: end}
		if ack.Properties != nil && ack.Properties.MaximumPacketSize != nil {
			s.maxPacket = *ack.Properties.MaximumPacketSize
		}
		return s, Result{}, false
	case late:
		return nil, rejected("channel unreachable"), false
	case ack == nil:
		// Closed, or a CONNACK of 3.1.1 (§3.1.2.2 lets an old broker do either).
		return nil, rejected("channel unreachable"), true
	}
	switch ack.ReasonCode {
	case packets.ConnackUnsupportedProtocolVersion:
		return nil, mqttRefusal(false), true
	case packets.ConnackBadUsernameOrPassword, packets.ConnackNotAuthorized, packets.ConnackBadAuthenticationMethod:
		return nil, mqttRefusal(true), false
	}
	return nil, mqttRefusal(false), false
}

// publish implements mqttSession.
func (s *session5) publish(ctx context.Context, m message) (Result, bool) {
	p := &paho.Publish{QoS: m.qos, Topic: m.topic, Payload: m.payload, Properties: &paho.PublishProperties{}}
	if m.expiry > 0 {
		p.Properties.MessageExpiry = &m.expiry
	}
	if m.id != "" {
		p.Properties.CorrelationData = []byte(m.id)
		p.Properties.User = paho.UserProperties{{Key: "command_id", Value: m.id}}
	}
	// 64 bytes are more than fixed header, packet identifier and the fixed parts of the properties take.
	if s.maxPacket > 0 && len(m.topic)+len(m.payload)+2*len(m.id)+64 > int(s.maxPacket) {
		return Result{Outcome: Rejected, Detail: "larger than the broker takes"}, false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ended, cancel)()
	res, err := s.client.Publish(ctx, p)
	switch {
	case errors.Is(err, paho.ErrInvalidArguments):
		return Result{Outcome: Rejected, Detail: "the broker does not take this QoS"}, false
	case err != nil && res == nil && errors.Is(err, context.DeadlineExceeded):
		return Result{Outcome: Unknown, Detail: "the broker did not acknowledge it in time"}, true
	case err != nil && res == nil:
		return Result{Outcome: Unknown, Detail: "the connection ended before the broker acknowledged it"}, true
	case m.qos == 0:
		return Result{Outcome: Accepted, Detail: "sent with QoS 0, which is not acknowledged"}, false
	}
	return pubackOutcome(res.ReasonCode), false
}

// pubackOutcome reads the reason code of a PUBACK (MQTT 5.0 §3.4.2.1). Success does not prove a subscriber: telling is
// optional for brokers.
func pubackOutcome(code byte) Result {
	switch {
	case code == packets.PubackNoMatchingSubscribers:
		return Result{Outcome: NoSubscriber, Detail: "nobody is subscribed to the topic"}
	case code < 0x80:
		return Result{Outcome: Accepted, Detail: "the broker acknowledged it; that does not tell whether anybody is subscribed"}
	case code == packets.PubackNotAuthorized:
		return Result{Outcome: Rejected, Detail: "the channel's user may not publish to the topic"}
	case code == packets.PubackTopicNameInvalid:
		return Result{Outcome: Rejected, Detail: "the broker refuses the topic name"}
	case code == packets.PubackQuotaExceeded:
		return Result{Outcome: Rejected, Detail: "the broker refuses it, a quota is exceeded"}
	}
	return Result{Outcome: Rejected, Detail: "the broker refuses the message"}
}

// lost implements mqttSession.
func (s *session5) lost() <-chan struct{} { return s.client.Done() }

// close implements mqttSession.
func (s *session5) close() {
	s.end()
	_ = s.client.Disconnect(&paho.Disconnect{})
}
