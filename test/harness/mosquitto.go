package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// MosquittoOptions describe a mosquitto broker.
type MosquittoOptions struct {
	Port int    // port on 127.0.0.1; required
	Dir  string // directory for configuration and log; required, must exist
}

// MosquittoServer is a running mosquitto. Started again with the same options after its end it goes on with the same
// log, so ClientsSeen spans restarts.
type MosquittoServer struct {
	*Process
	address string
	log     string
}

// probePrefix begins the client identifiers of the harness's own probes; ClientsSeen leaves them out.
const probePrefix = "harness-probe-"

// Mosquitto starts mosquitto with anonymous access and a full log, and returns when it answers an MQTT CONNECT.
func Mosquitto(ctx context.Context, o MosquittoOptions) (*MosquittoServer, error) {
	path, err := findProgram("mosquitto")
	if err != nil {
		return nil, err
	}
	if o.Port == 0 || o.Dir == "" {
		return nil, errors.New("check options: Port and Dir are required")
	}
	base := filepath.Join(o.Dir, "mosquitto-"+strconv.Itoa(o.Port))
	m := &MosquittoServer{
		address: net.JoinHostPort("127.0.0.1", strconv.Itoa(o.Port)),
		log:     base + ".log",
	}
	// Started by root, mosquitto would change to a user that cannot write into a private directory.
	config := fmt.Sprintf(`listener %d 127.0.0.1
user root
allow_anonymous true
persistence false
set_tcp_nodelay true
connection_messages true
log_type all
log_timestamp true
log_dest file %s
`, o.Port, m.log)
	if err := os.WriteFile(base+".conf", []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("write config: %w", err)
	}
	m.Process, err = StartProcess(ctx, ProcessOptions{Path: path, Args: []string{"-c", base + ".conf"}, Dir: o.Dir})
	if err != nil {
		return nil, fmt.Errorf("start mosquitto: %w", err)
	}
	if err := m.untilUp(ctx, "mosquitto at "+m.address, func() error { return probeMQTT(m.address) }); err != nil {
		_ = m.Kill9()
		return nil, err
	}
	return m, nil
}

// Address returns host:port of the MQTT listener.
func (m *MosquittoServer) Address() string { return m.address }

// LogFile returns the path of the log.
func (m *MosquittoServer) LogFile() string { return m.log }

// ClientsSeen returns the client identifier of every connection that mosquitto accepted, in order, repeated ones
// repeated. It reads the log: a connection may take a moment to appear there.
func (m *MosquittoServer) ClientsSeen() ([]string, error) {
	content, err := os.ReadFile(m.log)
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	return mosquittoClients(content), nil
}

// mosquittoClients parses lines such as
//
//	1714979289: New client connected from 127.0.0.1:40122 as meter-7 (p2, c1, k60, u'plant7').
//
// A client identifier may hold spaces and parentheses, but no line end: mosquitto refuses control characters.
func mosquittoClients(log []byte) []string {
	var ids []string
	for line := range bytes.Lines(log) {
		_, rest, ok := strings.Cut(string(line), ": New client connected from ")
		if !ok {
			continue
		}
		_, rest, ok = strings.Cut(rest, " as ")
		if !ok {
			continue
		}
		end := strings.LastIndex(rest, " (p")
		if end < 0 || strings.HasPrefix(rest, probePrefix) {
			continue
		}
		ids = append(ids, rest[:end])
	}
	return ids
}

// probeMQTT connects as a 3.1.1 client and expects CONNACK with code 0.
func probeMQTT(address string) error {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	id := probePrefix + strconv.Itoa(os.Getpid())
	connect := append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(id))}, id...)
	if _, err := conn.Write(connect); err != nil {
		return err
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		return err
	}
	if ack != [4]byte{0x20, 2, 0, 0} {
		return fmt.Errorf("unexpected answer % x", ack)
	}
	_, err = conn.Write([]byte{0xE0, 0})
	return err
}
