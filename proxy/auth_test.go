package proxy

import (
	"bytes"
	"net"
	"testing"

	"turnout/fsm"
	"turnout/proxy/mqtt"
)

// authConnect asks for enhanced authentication (5.0 §4.12).
func authConnect(id string) []byte {
	return connectPacket("MQTT", 5, 2, append([]byte{4, 0x15}, field("S")...), field(id))
}

// challenge is an AUTH "continue authentication" (5.0 §3.15).
func challenge() []byte { return []byte{0xF0, 6, 0x18, 4, 0x15, 0, 1, 'S'} }

func TestEnhancedAuthentication(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	ch := challenge()
	reply := []byte{0xF0, 6, 0x18, 4, 0x15, 0, 1, 'T'}
	b.setScript(func(v *visit) {
		for range 2 { // two rounds
			v.answer(ch[:3])
			v.answer(ch[3:])
			expect(t, v.conn, reply)
		}
		v.answer(append(bytes.Clone(accept5), 0x30, 3, 0, 1, 'x'))
		v.drain()
	})
	c := w.dial()
	_, _ = c.Write(append(authConnect("a"), reply...)) // the first reply even comes before the challenge
	expect(t, c, ch)
	if _, ok := w.Device("a"); ok {
		t.Error("recorded before CONNACK")
	}
	expect(t, c, ch)
	_, _ = c.Write(reply)
	expect(t, c, append(bytes.Clone(accept5), 0x30, 3, 0, 1, 'x'))
	_, _ = c.Write([]byte{0xC0, 0})
	eventually(t, "the PINGREQ at the broker", func() bool { return bytes.Equal(b.seen()[0].got(), []byte{0xC0, 0}) })
	w.bound("a")
}

func TestAuthenticationEndsTheRetryWindow(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	ch := challenge()
	first := brokers[w.ringOrder("west", "a")[0]]
	for _, answer := range [][]byte{{0x20, 3, 0, 0x87, 0}, {0x20, 3, 0, 0x88, 0}} {
		first.setScript(func(v *visit) { v.answer(append(bytes.Clone(ch), answer...)) })
		expectEnd(t, w.connect(authConnect("a"), ch), answer)
	}
	first.setScript(func(v *visit) { v.answer(ch) }) // and closes
	node := w.node("west", fsm.NodeName(first.name)).ID
	eventually(t, "the end of the cool-down", func() bool { return !w.gw.health.cooling(node) })
	expectEnd(t, w.connect(authConnect("a"), ch), []byte{0x20, 3, 0, 0x88, 0})
	if n := len(brokers["w1"].seen()) + len(brokers["w2"].seen()) + len(brokers["w3"].seen()); n != 3 || len(first.seen()) != 3 {
		t.Errorf("%d attempts, %d at the first node", n, len(first.seen()))
	}
	if w.Status().Devices != 0 {
		t.Error("recorded")
	}
}

func TestAuthIsNoAnswerTo3x(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	order := w.ringOrder("west", "a")
	brokers[order[0]].setScript(func(v *visit) { v.answer(challenge()); v.drain() })
	w.connect(packet3("a"), accept3)
	if len(brokers[order[1]].seen()) != 1 {
		t.Error("the next node was not asked")
	}
}

func TestDeviceHangsUpDuringAuthentication(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	b.setScript(func(v *visit) { v.answer(challenge()); v.drain() })
	c := w.connect(authConnect("a"), challenge())
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	eventually(t, "DISCONNECT at the broker", func() bool { return bytes.Equal(b.seen()[0].got(), mqtt.ClientDisconnect(mqtt.V5)) })
	eventually(t, "counted", func() bool { return w.results("hangup") == 1 })
}

// TestAuthenticationKeepsNobodyFromHome lets a device dawdle over its AUTH at a node that has just left its cool-down.
func TestAuthenticationKeepsNobodyFromHome(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	home := w.ringOrder("west", "a")[0]
	first := brokers[home]
	first.setScript(func(v *visit) { v.answer([]byte{0x20, 3, 0, 0x88, 0}) })
	for range mostDoubts {
		w.connect(packet5("a"), accept5)
	}
	node := w.node("west", fsm.NodeName(home)).ID
	eventually(t, "the end of the cool-down", func() bool { return !w.gw.health.cooling(node) })
	first.setScript(func(v *visit) {
		if v.c.HasAuthMethod {
			v.answer(challenge())
			v.drain()
			return
		}
		v.accept()
	})
	w.connect(authConnect(w.keyAt("west", home)), challenge())
	w.connect(packet5("a"), accept5)
	if ids := first.ids(); len(ids) != mostDoubts+2 {
		t.Errorf("home saw %q, the device went elsewhere", ids)
	}
}

// TestRefusalDuringAuthenticationIsPassedOn has a node refuse and close while the device still sends.
func TestRefusalDuringAuthenticationIsPassedOn(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	refusal := []byte{0x20, 3, 0, 0x87, 0}
	b.setScript(func(v *visit) {
		v.answer(challenge())
		_ = v.conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		expect(t, v.conn, make([]byte, 1))
		v.answer(refusal)
	})
	for range 20 {
		c := w.connect(authConnect("a"), challenge())
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = c.Write(make([]byte, 4<<20))
		}()
		expect(t, c, refusal)
		_ = c.Close()
		<-sent
	}
}
