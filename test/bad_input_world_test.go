package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"turnout/api/client"
	"turnout/node"
	"turnout/test/harness"
	"turnout/test/harness/fleet"
)

// The gateways of a doorstep differ in how they judge a CONNECT.
const (
	lenient = iota // the defaults
	strict         // strict: true
	hasty          // half a second from accept to CONNACK
)

// The answers of a gateway, byte by byte: CONNACK of 3.1 and 3.1.1, and of 5.0 (its property length is never left out).
func connack3(code byte) []byte { return []byte{0x20, 2, 0, code} }
func connack5(code byte) []byte { return []byte{0x20, 3, 0, code, 0} }

// doorstep is a fleet of one gateway of each kind, in front of a broker that takes everything, and the count of what was sent to it.
type doorstep struct {
	*world
	broker *takingBroker
	counts [3]map[string]int // by gateway and result, as they have to be
}

func newDoorstep(t *testing.T) *doorstep {
	w := newWorld(t, 3, func(i int, c *node.Config) {
		switch i {
		case strict:
			c.Strict = true
		case hasty:
			c.ConnectTimeout = 500 * time.Millisecond
		}
	})
	d := &doorstep{world: w, broker: newTakingBroker(t)}
	w.static("taking", d.broker.address())
	w.policy(client.PolicyPut{Policy: "cluster", Cluster: "taking"})
	for i := range d.counts {
		var err error
		if d.counts[i], err = w.connectResults(w.fleet.Gateways()[i]); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// static adds a cluster of one node and waits until every gateway lists it.
func (w *world) static(name, address string) {
	w.t.Helper()
	spec := client.ClusterSpec{Driver: "static", Addresses: map[string]string{"one": address}}
	if _, err := w.operator().PutCluster(w.ctx, name, spec, client.WriteOptions{}); err != nil {
		w.t.Fatal(err)
	}
	for _, g := range w.fleet.Gateways() {
		w.eventually("the node of "+name+" on "+g.Name, func() (bool, string) {
			nodes, err := g.API().Nodes(w.ctx, name)
			return len(nodes) == 1, fmt.Sprint(len(nodes), " nodes, ", err)
		})
	}
}

// connectLine is one counter of turnout_connects_total in the text form of /metrics.
var connectLine = regexp.MustCompile(`(?m)^turnout_connects_total\{listener="[^"]*",result="([^"]*)"\} (\S+)$`)

// connectResults reads from /metrics how connections of devices went; results that never happened are left out.
func (w *world) connectResults(g *fleet.Gateway) (map[string]int, error) {
	req, err := http.NewRequestWithContext(w.ctx, http.MethodGet, g.URL()+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read metrics: %d, %w", resp.StatusCode, err)
	}
	counts := map[string]int{}
	for _, m := range connectLine.FindAllStringSubmatch(string(body), -1) {
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			counts[m[1]] = int(n)
		}
	}
	return counts, nil
}

// soon is eventually for a row of a table: it fails the row alone, and long before the journey's own limit.
func (w *world) soon(t *testing.T, what string, cond func() (bool, string)) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
	defer cancel()
	err := harness.Eventually(ctx, what, cond)
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

// counted waits until a gateway has counted one more connection, with this result and no other. What is counted twice, and late, fails the
// next row.
func (d *doorstep) counted(t *testing.T, gateway int, result string) {
	t.Helper()
	want := d.counts[gateway]
	want[result]++
	var got map[string]int
	ok := d.soon(t, "one count of "+result, func() (bool, string) {
		var err error
		if got, err = d.connectResults(d.fleet.Gateways()[gateway]); err != nil {
			return false, err.Error()
		}
		return maps.Equal(got, want), cmp.Diff(want, got)
	})
	if !ok && got != nil {
		d.counts[gateway] = got // one wrong count is not to fail every row behind it
	}
}

// talk sends bytes and returns everything up to the end of the stream; a reset or no end within the limit is an error.
func (w *world) talk(address string, send []byte, finish bool, limit time.Duration) ([]byte, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	if _, err := c.Write(send); err != nil {
		return nil, err
	}
	if finish {
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(c)
}

// refused sends what must be refused, and checks answer, count and that no broker hears of it. What is answered is answered also to a
// device that goes on sending behind it.
func (d *doorstep) refused(t *testing.T, gateway int, send []byte, finish bool, want []byte, result string) {
	t.Helper()
	heard := d.broker.visits()
	attempts := [][]byte{send}
	if len(want) > 0 && !finish {
		attempts = append(attempts, append(bytes.Clone(send), bytes.Repeat([]byte{0xC0, 0}, 20_000)...))
	}
	for i, bytesSent := range attempts {
		got, err := d.talk(d.fleet.Gateways()[gateway].MQTT(), bytesSent, finish, 20*time.Second)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("attempt %d: answer % x, %v; want % x and the end of the stream", i+1, got, err, want)
		}
		d.counted(t, gateway, result)
	}
	if n := d.broker.visits(); n != heard {
		t.Errorf("a broker heard of it")
	}
}

// accepted sends a CONNECT that must reach the broker as it is.
func (d *doorstep) accepted(t *testing.T, gateway int, send []byte) {
	t.Helper()
	heard := d.broker.visits()
	want := connack3(0)
	if versionOf(send) == 5 {
		want = connack5(0)
	}
	got, err := d.talk(d.fleet.Gateways()[gateway].MQTT(), send, true, 20*time.Second)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("answer % x, %v; want % x", got, err, want)
	}
	d.counted(t, gateway, "accepted")
	if n := d.broker.visits(); n != heard+1 || !bytes.Equal(d.broker.last(), send) {
		t.Errorf("the broker had %d visits and read % .64x", n-heard, d.broker.last())
	}
}

// text is a length-prefixed string (3.1.1 §1.5.3).
func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

// connect puts a CONNECT together; what follows keep alive is given as it is. The variable byte integer of MQTT has the form of Uvarint.
func connect(name string, level, flags byte, rest ...[]byte) []byte {
	body := append(text(name), level, flags, 0, 60)
	body = append(body, bytes.Join(rest, nil)...)
	return append(binary.AppendUvarint([]byte{0x10}, uint64(len(body))), body...)
}

func connect31(flags byte, rest ...[]byte) []byte  { return connect("MQIsdp", 3, flags, rest...) }
func connect311(flags byte, rest ...[]byte) []byte { return connect("MQTT", 4, flags, rest...) }

// connect5 has the CONNECT properties, without their length, in front of the payload.
func connect5(flags byte, properties []byte, rest ...[]byte) []byte {
	list := append(binary.AppendUvarint(nil, uint64(len(properties))), properties...)
	return connect("MQTT", 5, flags, append([][]byte{list}, rest...)...)
}

// versionOf is the level of a well-framed CONNECT, without the bridge bit.
func versionOf(packet []byte) byte {
	_, n := binary.Uvarint(packet[1:])
	name := packet[1+n:]
	return name[2+int(name[1])] & 0x7F
}

// clientHello is what a TLS client sends first.
func clientHello(t *testing.T) []byte {
	t.Helper()
	device, listener := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(device, &tls.Config{ServerName: "gateway.test"}).Handshake() // ends with the pipe
	}()
	record := make([]byte, 5)
	_, err := io.ReadFull(listener, record)
	if err == nil {
		record = append(record, make([]byte, binary.BigEndian.Uint16(record[3:]))...)
		_, err = io.ReadFull(listener, record[5:])
	}
	_ = listener.Close()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// takingBroker accepts every CONNECT, whatever is in it, and keeps its bytes.
type takingBroker struct {
	ln net.Listener
	wg sync.WaitGroup

	mu      sync.Mutex
	conns   []net.Conn
	packets [][]byte
}

func newTakingBroker(t *testing.T) *takingBroker {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &takingBroker{ln: ln}
	b.wg.Go(b.accept)
	t.Cleanup(b.close)
	return b
}

func (b *takingBroker) accept() {
	for {
		c, err := b.ln.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.conns = append(b.conns, c)
		b.mu.Unlock()
		b.wg.Go(func() { b.serve(c) })
	}
}

func (b *takingBroker) close() {
	_ = b.ln.Close()
	b.mu.Lock()
	for _, c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

func (b *takingBroker) address() string { return b.ln.Addr().String() }

func (b *takingBroker) serve(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(journeyLimit))
	packet := make([]byte, 1, 64)
	if _, err := io.ReadFull(c, packet); err != nil || packet[0]>>4 != 1 {
		return // no CONNECT, or gone
	}
	for more := true; more; more = packet[len(packet)-1] >= 0x80 {
		packet = append(packet, 0)
		if _, err := io.ReadFull(c, packet[len(packet)-1:]); err != nil {
			return
		}
	}
	length, _ := binary.Uvarint(packet[1:])
	head := len(packet)
	packet = append(packet, make([]byte, length)...)
	if _, err := io.ReadFull(c, packet[head:]); err != nil {
		return
	}
	b.mu.Lock()
	b.packets = append(b.packets, packet)
	b.mu.Unlock()
	answer := connack3(0)
	if versionOf(packet) == 5 {
		answer = connack5(0)
	}
	if _, err := c.Write(answer); err == nil {
		_, _ = io.Copy(io.Discard, c)
	}
}

func (b *takingBroker) visits() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.packets)
}

func (b *takingBroker) last() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.packets) == 0 {
		return nil
	}
	return b.packets[len(b.packets)-1]
}
