package upstream

import (
	"context"
	"errors"
	"net"
	"net/url"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// session3 is a session of MQTT 3.1.1.
type session3 struct {
	client mqtt.Client
	ended  chan struct{} // closed when the connection was lost or close was called
	once   *sync.Once
}

// connect3 implements connector.
func connect3(ctx context.Context, conn net.Conn, clientID string, cred credential) (mqttSession, Result, bool) {
	ended, once := make(chan struct{}), new(sync.Once)
	o := mqtt.NewClientOptions()
	o.AddBroker("tcp://channel") // not dialed: the connection is there
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return conn, nil })
	o.SetProtocolVersion(4)
	o.SetClientID(clientID)
	o.SetUsername(cred.key)
	o.SetPassword(cred.secret)
	o.SetCleanSession(true)
	o.SetAutoReconnect(false)
	o.SetConnectRetry(false)
	o.SetConnectTimeout(connectTimeout)
	o.SetKeepAlive(mqttKeepAlive * time.Second)
	o.SetPingTimeout(connectTimeout)
	o.SetWriteTimeout(mqttWriteTimeout)
	o.SetConnectionLostHandler(func(mqtt.Client, error) { once.Do(func() { close(ended) }) })
	s := &session3{client: mqtt.NewClient(o), ended: ended, once: once}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	token := s.client.Connect()
	<-token.Done() // ends with ctx, which closes the connection
	late := !stop() || ctx.Err() != nil
	if token.Error() == nil && !late {
		return s, Result{}, false
	}
	if token.Error() == nil {
		s.close()
	}
	_ = conn.Close()
	if t, ok := token.(*mqtt.ConnectToken); ok && !late {
		switch t.ReturnCode() {
		case packets.ErrRefusedBadUsernameOrPassword, packets.ErrRefusedNotAuthorised:
			return nil, mqttRefusal(true), false
		case packets.ErrRefusedServerUnavailable, packets.ErrRefusedIDRejected, packets.ErrRefusedBadProtocolVersion:
			return nil, mqttRefusal(false), false
		}
	}
	return nil, rejected("channel unreachable"), false
}

// publish implements mqttSession.
func (s *session3) publish(ctx context.Context, m message) (Result, bool) {
	token := s.client.Publish(m.topic, m.qos, false, m.payload)
	select {
	case <-token.Done():
	case <-ctx.Done():
		return Result{Outcome: Unknown, Detail: "the broker did not acknowledge it in time"}, true
	}
	if errors.Is(token.Error(), mqtt.ErrNotConnected) {
		return rejected("channel unreachable"), true
	}
	if token.Error() != nil {
		return Result{Outcome: Unknown, Detail: "the connection to the broker was lost"}, true
	}
	r := Result{Outcome: Accepted, Detail: "the broker acknowledged it; MQTT 3.1.1 does not tell whether anybody is subscribed"}
	if m.qos == 0 {
		r.Detail = "sent with QoS 0, which is not acknowledged"
	}
	if m.expiry > 0 {
		r.Detail += "; MQTT 3.1.1 carries no expiry"
	}
	return r, false
}

// lost implements mqttSession.
func (s *session3) lost() <-chan struct{} { return s.ended }

// close implements mqttSession.
func (s *session3) close() {
	s.client.Disconnect(250)
	s.once.Do(func() { close(s.ended) })
}
