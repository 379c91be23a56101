package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	paho3 "github.com/eclipse/paho.mqtt.golang"
)

// device3 is a device over the Paho client of MQTT 3.1 and 3.1.1.
type device3 struct {
	client paho3.Client
	lost   chan struct{}
	once   sync.Once
}

const deviceConnectTimeout = 30 * time.Second

// conn3 makes an abrupt close look like the peer's end to the library, which takes "use of closed network connection"
// for its own doing and would never report the loss.
type conn3 struct {
	net.Conn
	closed atomic.Bool // by the library
}

func (c *conn3) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, net.ErrClosed) && !c.closed.Load() {
		err = io.EOF
	}
	return n, err
}

func (c *conn3) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

func (d *Device) connect3(ctx context.Context) error {
	c := &device3{lost: make(chan struct{})}
	o := paho3.NewClientOptions()
	o.AddBroker("tcp://" + d.o.Address)
	o.SetClientID(d.o.ClientID)
	o.SetUsername(d.o.Username)
	o.SetPassword(d.o.Password)
	o.SetProtocolVersion(uint(d.o.Version))
	o.SetCleanSession(d.o.CleanStart)
	o.SetKeepAlive(time.Duration(d.o.KeepAlive) * time.Second)
	o.SetAutoReconnect(false)
	o.SetConnectRetry(false)
	o.SetConnectTimeout(deviceConnectTimeout)
	if w := d.o.Will; w != nil {
		o.SetBinaryWill(w.Topic, w.Payload, w.QoS, w.Retain)
	}
	o.SetDefaultPublishHandler(func(_ paho3.Client, m paho3.Message) {
		d.receive(Message{Topic: m.Topic(), Payload: slices.Clone(m.Payload()), QoS: m.Qos(), Retain: m.Retained()})
	})
	o.SetConnectionLostHandler(func(paho3.Client, error) { c.ended() })

	ctx, cancel := context.WithTimeout(ctx, deviceConnectTimeout)
	defer cancel()
	dialled := make(chan net.Conn, 1)
	o.SetCustomOpenConnectionFn(func(*url.URL, paho3.ClientOptions) (net.Conn, error) {
		conn, err := d.o.Dial(ctx, d.o.Address)
		if err != nil {
			return nil, err
		}
		dialled <- conn
		return &conn3{Conn: conn}, nil
	})
	c.client = paho3.NewClient(o)
	token, ok := c.client.Connect().(*paho3.ConnectToken)
	if !ok {
		return errors.New("unexpected token type")
	}
	var conn net.Conn
	for waiting := true; waiting; {
		select {
		case conn = <-dialled:
		case <-token.Done():
			waiting = false
		case <-ctx.Done():
			if conn != nil {
				_ = conn.Close() // ends the handshake, and with it the token
			}
			<-token.Done()
			waiting = false
		}
	}
	if conn == nil {
		select {
		case conn = <-dialled:
		default:
		}
	}
	if err := token.Error(); err != nil {
		if code := token.ReturnCode(); code >= 1 && code <= 5 {
			return &RefusedError{Version: d.o.Version, Code: code}
		}
		return errors.Join(err, ctx.Err())
	}
	d.conn, d.client, d.present = conn, c, token.SessionPresent()
	return nil
}

func (c *device3) ended() { c.once.Do(func() { close(c.lost) }) }

func (c *device3) done() <-chan struct{} { return c.lost }

// wait waits for a token, for ctx or for the end of the connection.
func (c *device3) wait(ctx context.Context, token paho3.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return ctx.Err()
	case <-c.lost:
		return ErrDeviceGone
	}
}

func (c *device3) publish(ctx context.Context, m Message) error {
	return c.wait(ctx, c.client.Publish(m.Topic, m.QoS, m.Retain, m.Payload))
}

func (c *device3) subscribe(ctx context.Context, filters []string) error {
	wanted := make(map[string]byte, len(filters))
	for _, f := range filters {
		wanted[f] = 1
	}
	token := c.client.SubscribeMultiple(wanted, nil)
	if err := c.wait(ctx, token); err != nil {
		return err
	}
	if t, ok := token.(*paho3.SubscribeToken); ok {
		for _, code := range t.Result() {
			if code == 0x80 {
				return fmt.Errorf("subscription rejected with code 0x%02x", code)
			}
		}
	}
	return nil
}

func (c *device3) disconnect() {
	select {
	case <-c.lost:
		return
	default:
	}
	c.client.Disconnect(1000)
	c.ended()
}
