package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// RefusedError is the refusal of a CONNECT by a CONNACK.
type RefusedError struct {
	Version byte   // protocol version of the device: 3, 4 or 5
	Code    byte   // CONNACK return code (3.x: 1 to 5) or reason code (5.0: 0x80 and up)
	Reason  string // Reason String of 5.0, "" if there was none
}

func (e *RefusedError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("connection refused with code 0x%02x", e.Code)
	}
	return fmt.Sprintf("connection refused with code 0x%02x: %q", e.Code, e.Reason)
}

// ErrDeviceGone is returned when a device's connection ended before the operation was done.
var ErrDeviceGone = errors.New("device is disconnected")

// DeviceOptions describe a device and its CONNECT.
type DeviceOptions struct {
	Address       string // host:port; required
	ClientID      string
	Username      string
	Password      string
	Version       byte   // 3 (MQTT 3.1), 4 (3.1.1) or 5 (5.0); 0 is 4
	CleanStart    bool   // Clean Session in 3.x
	SessionExpiry uint32 // seconds, 5.0 only; sent unless 0
	KeepAlive     uint16 // seconds; 0 is 60
	Will          *Message
	Subscribe     []string // topic filters to subscribe with QoS 1 before ConnectDevice returns

	// Dial opens the connection, for TLS or a chosen source address; nil is plain TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Device is one connection of a real MQTT client: Eclipse Paho's for 3.x, or its other one for 5.0. It never connects
// again by itself; connecting again is a new Device. All methods may be called from any goroutine.
type Device struct {
	o       DeviceOptions
	conn    net.Conn
	client  deviceClient
	present bool
	id      string

	mu         sync.Mutex
	received   []Message
	arrived    chan struct{} // closed and replaced at every message
	disconnect *byte         // reason code of the server's DISCONNECT
}

// deviceClient is what the two client libraries have in common.
type deviceClient interface {
	publish(ctx context.Context, m Message) error
	subscribe(ctx context.Context, filters []string) error
	disconnect()
	done() <-chan struct{} // closed when the connection has ended and been cleaned up
}

// ConnectDevice dials, sends CONNECT, waits for CONNACK and subscribes. A refusal is a *RefusedError in the chain of
// the error. ctx bounds the connecting only.
func ConnectDevice(ctx context.Context, o DeviceOptions) (*Device, error) {
	if o.KeepAlive == 0 {
		o.KeepAlive = 60
	}
	if o.Version == 0 {
		o.Version = 4
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	d := &Device{o: o, id: o.ClientID, arrived: make(chan struct{})}
	var err error
	switch o.Version {
	case 3, 4:
		err = d.connect3(ctx)
	case 5:
		err = d.connect5(ctx)
	default:
		return nil, fmt.Errorf("check options: version %d is not 3, 4 or 5", o.Version)
	}
	if err != nil {
		return nil, fmt.Errorf("connect device: %w", err)
	}
	if len(o.Subscribe) > 0 {
		if err := d.client.subscribe(ctx, o.Subscribe); err != nil {
			d.Kill()
			return nil, fmt.Errorf("subscribe device: %w", err)
		}
	}
	return d, nil
}

// ClientID returns the client identifier, in 5.0 the one that the server assigned to an empty one.
func (d *Device) ClientID() string { return d.id }

// SessionPresent returns the flag of CONNACK.
func (d *Device) SessionPresent() bool { return d.present }

// LocalAddr returns the device's own address as its first peer sees it.
func (d *Device) LocalAddr() string { return d.conn.LocalAddr().String() }

// Publish sends a message and waits for the acknowledgement that its QoS demands.
func (d *Device) Publish(ctx context.Context, m Message) error {
	if err := d.client.publish(ctx, m); err != nil {
		return fmt.Errorf("publish from device: %w", err)
	}
	return nil
}

// Received returns the messages that arrived so far, oldest first.
func (d *Device) Received() []Message {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.received)
}

// Await returns the first message for which match says yes, among those that arrived and those still to come. The
// error is that of ctx, or ErrDeviceGone.
func (d *Device) Await(ctx context.Context, match func(Message) bool) (Message, error) {
	for next := 0; ; {
		d.mu.Lock()
		fresh, arrived := d.received[next:], d.arrived
		next = len(d.received)
		d.mu.Unlock()
		for _, m := range fresh {
			if match(m) {
				return m, nil
			}
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return Message{}, fmt.Errorf("await message: %w", ctx.Err())
		case <-d.Done():
			select {
			case <-arrived: // look at what came before the end
			default:
				return Message{}, fmt.Errorf("await message: %w", ErrDeviceGone)
			}
		}
	}
}

// Done is closed when the connection has ended, from whichever side.
func (d *Device) Done() <-chan struct{} { return d.client.done() }

// ServerDisconnect returns the reason code of a DISCONNECT that the server sent (5.0 only).
func (d *Device) ServerDisconnect() (code byte, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.disconnect == nil {
		return 0, false
	}
	return *d.disconnect, true
}

// Disconnect sends DISCONNECT, closes and waits for the end. It is idempotent.
func (d *Device) Disconnect() {
	d.client.disconnect()
	d.Kill()
}

// Kill closes the connection without a word, as a device does that lost power, and waits for the end. It is
// idempotent.
func (d *Device) Kill() {
	_ = d.conn.Close()
	select {
	case <-d.client.done():
	case <-time.After(5 * time.Second): // the library lost track; nothing more can be done from here
	}
}

func (d *Device) receive(m Message) {
	m.Time = time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.received = append(d.received, m)
	close(d.arrived)
	d.arrived = make(chan struct{})
}
