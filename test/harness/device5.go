package harness

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	paho5 "github.com/eclipse/paho.golang/paho/session"
	"github.com/eclipse/paho.golang/paho/session/state"
)

// device5 is a device over the Paho client of MQTT 5.0.
type device5 struct {
	client *paho.Client
}

func (d *Device) connect5(ctx context.Context) error {
	conn, err := d.o.Dial(ctx, d.o.Address)
	if err != nil {
		return fmt.Errorf("dial device: %w", err)
	}
	client := paho.NewClient(paho.ClientConfig{
		ClientID:      d.o.ClientID,
		Conn:          packets.NewThreadSafeConn(conn),
		PacketTimeout: deviceConnectTimeout,
		Session:       &session5{SessionManager: state.NewInMemory(), d: d},
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			d.receive(message5(p.Packet))
			return true, nil
		}},
	})
	ack, err := client.Connect(ctx, d.connect5Packet())
	if err != nil {
		_ = conn.Close()
		if ack != nil && ack.ReasonCode >= 0x80 {
			refused := &RefusedError{Version: 5, Code: ack.ReasonCode}
			if ack.Properties != nil {
				refused.Reason = ack.Properties.ReasonString
			}
			return refused
		}
		return err
	}
	if ack.Properties != nil && ack.Properties.AssignedClientID != "" {
		d.id = ack.Properties.AssignedClientID
	}
	d.conn, d.client, d.present = conn, &device5{client: client}, ack.SessionPresent
	return nil
}

func (d *Device) connect5Packet() *paho.Connect {
	receiveMaximum := uint16(64) // the library allocates a queue of that length
	cp := &paho.Connect{
		ClientID:     d.o.ClientID,
		CleanStart:   d.o.CleanStart,
		KeepAlive:    d.o.KeepAlive,
		Username:     d.o.Username,
		UsernameFlag: d.o.Username != "",
		Password:     []byte(d.o.Password),
		PasswordFlag: d.o.Password != "",
		Properties:   &paho.ConnectProperties{RequestProblemInfo: true, ReceiveMaximum: &receiveMaximum},
	}
	if d.o.SessionExpiry > 0 {
		cp.Properties.SessionExpiryInterval = &d.o.SessionExpiry
	}
	if w := d.o.Will; w != nil {
		cp.WillMessage = &paho.WillMessage{Topic: w.Topic, Payload: w.Payload, QoS: w.QoS, Retain: w.Retain}
		cp.WillProperties = &paho.WillProperties{}
	}
	return cp
}

// session5 learns of a server DISCONNECT before the client is done; the library's own callback comes some time after.
type session5 struct {
	paho5.SessionManager
	d *Device
}

// ConnectionLost is called with the server's DISCONNECT, if there was one, and at the end of every connection with
// nil. The session ends with its only connection, so that whoever waits for an acknowledgement is let go.
func (s *session5) ConnectionLost(p *packets.Disconnect) error {
	err := s.SessionManager.ConnectionLost(p)
	if p == nil {
		return errors.Join(err, s.SessionManager.Close())
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	code := p.ReasonCode
	s.d.disconnect = &code
	return err
}

func message5(p *paho.Publish) Message {
	m := Message{Topic: p.Topic, Payload: slices.Clone(p.Payload), QoS: p.QoS, Retain: p.Retain}
	if props := p.Properties; props != nil {
		m.Properties = MessageProperties{
			PayloadFormat: props.PayloadFormat, ContentType: props.ContentType,
			ResponseTopic: props.ResponseTopic, CorrelationData: slices.Clone(props.CorrelationData),
		}
		if props.MessageExpiry != nil {
			m.Properties.ExpirySeconds = *props.MessageExpiry
		}
		for _, u := range props.User {
			m.Properties.User = append(m.Properties.User, UserProperty{Key: u.Key, Value: u.Value})
		}
	}
	return m
}

func (c *device5) done() <-chan struct{} { return c.client.Done() }

func (c *device5) publish(ctx context.Context, m Message) error {
	p := &paho.Publish{
		Topic: m.Topic, Payload: m.Payload, QoS: m.QoS, Retain: m.Retain,
		Properties: &paho.PublishProperties{
			PayloadFormat: m.Properties.PayloadFormat, ContentType: m.Properties.ContentType,
			ResponseTopic: m.Properties.ResponseTopic, CorrelationData: m.Properties.CorrelationData,
		},
	}
	if m.Properties.ExpirySeconds > 0 {
		p.Properties.MessageExpiry = &m.Properties.ExpirySeconds
	}
	for _, u := range m.Properties.User {
		p.Properties.User.Add(u.Key, u.Value)
	}
	answer, err := c.client.Publish(ctx, p)
	if err != nil {
		return err
	}
	if answer != nil && answer.ReasonCode >= 0x80 {
		return fmt.Errorf("message rejected with code 0x%02x", answer.ReasonCode)
	}
	return nil
}

func (c *device5) subscribe(ctx context.Context, filters []string) error {
	s := &paho.Subscribe{}
	for _, f := range filters {
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: 1})
	}
	if _, err := c.client.Subscribe(ctx, s); err != nil { // a rejected filter is an error here too
		return err
	}
	return nil
}

func (c *device5) disconnect() {
	select {
	case <-c.client.Done():
	default:
		_ = c.client.Disconnect(&paho.Disconnect{}) // fails only if the connection is gone already
	}
}
