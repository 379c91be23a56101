//go:build integration

package harness

import (
	"io"
	"net"
	"slices"
	"strconv"
	"testing"
)

func TestMosquittoRecordsAndComesBack(t *testing.T) {
	ports, err := FreePorts(1)
	must(t, err)
	o := MosquittoOptions{Port: ports[0], Dir: t.TempDir()}
	var want []string
	for round := range 3 {
		m, err := Mosquitto(testContext(t), o)
		must(t, err)
		for i, version := range []byte{3, 4, 5} {
			id := "d" + strconv.Itoa(round) + " (p" + strconv.Itoa(i)
			connect(t, DeviceOptions{Address: m.Address(), ClientID: id, Version: version, CleanStart: true, Username: "u", Password: "p"})
			want = append(want, id)
		}
		eventually(t, "all clients are in the log", func() bool {
			got, err := m.ClientsSeen()
			must(t, err)
			return slices.Equal(got, want)
		})
		if round == 1 {
			must(t, m.Stop(testContext(t)))
		} else {
			must(t, m.Kill9())
		}
	}
}

func TestMosquittoOnATakenPortIsAnError(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	if _, err := Mosquitto(testContext(t), MosquittoOptions{Port: port, Dir: t.TempDir()}); err == nil {
		t.Fatal("no error")
	}
}

func TestHAProxyBalancesAndSkipsTheDead(t *testing.T) {
	ports, err := FreePorts(1)
	must(t, err)
	first, second := startBroker(t), startBroker(t)
	p, err := HAProxyTCP(testContext(t), HAProxyOptions{
		Dir: t.TempDir(), Log: io.Discard,
		Frontends: []HAProxyFrontend{{Port: ports[0], Backends: []string{first.Address(), second.Address()}}},
	})
	must(t, err)
	t.Cleanup(func() { must(t, p.Kill9()) })
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	for i := range 10 {
		connect(t, DeviceOptions{Address: address, ClientID: "d" + strconv.Itoa(i), CleanStart: true})
	}
	before := len(second.SeenClients())
	if len(first.SeenClients()) < 3 || before < 3 {
		t.Errorf("clients %v and %v", first.SeenClients(), second.SeenClients())
	}
	must(t, first.Stop())
	for i := range 10 {
		connect(t, DeviceOptions{Address: address, ClientID: "e" + strconv.Itoa(i), CleanStart: true})
	}
	if len(second.SeenClients()) != before+10 {
		t.Errorf("clients %v", second.SeenClients())
	}
}
