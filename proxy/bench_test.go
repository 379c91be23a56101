package proxy

import (
	"fmt"
	"io"
	"net"
	"testing"
)

// BenchmarkConnect is one device after the other: CONNECT, CONNACK, close.
func BenchmarkConnect(b *testing.B) {
	w, _ := oneCluster(b, testConfig())
	addr := w.gw.Addrs()["mqtt"].String()
	b.ReportAllocs()
	i := 0
	ack := make([]byte, len(accept3))
	for b.Loop() {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		i++
		_, _ = c.Write(packet3(fmt.Sprintf("dev-%d", i%1000)))
		if _, err := io.ReadFull(c, ack); err != nil {
			b.Fatal(err)
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}
