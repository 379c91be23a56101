package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"time"

	"turnout/proxy/relay"
)

// longAgo is a deadline that wakes whoever waits for the connection.
var longAgo = time.Unix(1, 0)

// early reads what a device sends between its CONNECT and the CONNACK: MQTT lets it go on at once (3.1.1 §3.1.4). The bytes
// are held until a node has accepted the device, or, during enhanced authentication, passed on as they come. It is also how
// a device that breaks off is noticed. A device that only ends its stream is still answered.
//
// One goroutine runs between start and stop; the fields belong to it meanwhile.
type early struct {
	conn   net.Conn
	buf    []byte   // lent by the caller
	limit  int      // of held; reading stops there, which slows the device down
	held   []byte   // in the order of arrival
	to     net.Conn // where bytes go at once; nil: they are held
	broken bool     // the device's connection was reset
	lost   bool     // to did not take everything
	gone   func()   // called when it breaks
	done   chan struct{}
}

func (e *early) start() {
	e.done = make(chan struct{})
	go e.run()
}

// stop wakes the goroutine, waits for it and restores the read deadline. Nothing that was read is lost.
func (e *early) stop(deadline time.Time) {
	_ = e.conn.SetReadDeadline(longAgo) // on a closed connection the reader is awake anyway
	<-e.done
	_ = e.conn.SetReadDeadline(deadline)
}

func (e *early) run() {
	defer close(e.done)
	for e.to != nil || len(e.held) < e.limit {
		room := len(e.buf)
		if e.to == nil {
			room = min(room, e.limit-len(e.held))
		}
		n, err := e.conn.Read(e.buf[:room])
		if n > 0 && !e.take(e.buf[:n]) {
			return
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			if e.to != nil {
				relay.CloseWrite(e.to)
			}
			return // the relay reads the end once more and passes it on
		default:
			e.broken = true
			e.gone()
			return
		}
	}
}

func (e *early) take(b []byte) bool {
	if e.to == nil {
		e.held = append(e.held, b...)
		return true
	}
	_, err := e.to.Write(b)
	e.lost = err != nil
	return !e.lost
}
