package harness

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// linkConn is one connection through a Link. Each direction has a reader, which stamps what it read with the time it
// is due, and a writer, which delivers it when it is due and the link lets it through.
type linkConn struct {
	link   *Link
	client net.Conn
	gone   chan struct{} // closed when the connection is given up
	once   sync.Once

	mu     sync.Mutex
	target net.Conn // nil until dialled
}

// chunk is a piece of a stream in flight; an empty one is its end, clean or by reset.
type chunk struct {
	data  []byte
	due   time.Time
	reset bool
}

const (
	linkChunkBytes = 16 << 10
	linkQueue      = 64 // chunks in flight per direction, 1 MiB
)

// close gives the connection up, both sides.
func (c *linkConn) close() {
	c.once.Do(func() { close(c.gone) })
	_ = c.client.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.target != nil {
		_ = c.target.Close()
	}
}

func (c *linkConn) serve() {
	defer c.link.forget(c)
	defer c.close()
	if !c.passable(func(m LinkMode) bool { return m == LinkBlackhole }) {
		return
	}
	target, err := c.dial()
	if err != nil {
		c.link.log.Debug("target not reached", "reason", err.Error())
		return
	}
	var wg sync.WaitGroup
	up, down := make(chan chunk, linkQueue), make(chan chunk, linkQueue)
	wg.Go(func() { c.readLoop(c.client, up) })
	wg.Go(func() { c.readLoop(target, down) })
	wg.Go(func() {
		c.writeLoop(target, up, LinkBlackholeUp, func(b LinkBehaviour) int64 { return b.CutAfterUp })
	})
	wg.Go(func() {
		c.writeLoop(c.client, down, LinkBlackholeDown, func(b LinkBehaviour) int64 { return b.CutAfterDown })
	})
	wg.Wait()
}

func (c *linkConn) dial() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), linkDialTimeout)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	c.link.wg.Go(func() {
		select {
		case <-c.gone:
			cancel()
		case <-stop:
		}
	})
	target, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.link.target)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.target = target
	c.mu.Unlock()
	select {
	case <-c.gone: // closed while the dial succeeded
		_ = target.Close()
		return nil, net.ErrClosed
	default:
		return target, nil
	}
}

// passable waits while closed says that the mode holds traffic back. It returns false when the connection is gone.
func (c *linkConn) passable(closed func(LinkMode) bool) bool {
	for {
		b, changed := c.link.state()
		if !closed(b.Mode) {
			return !c.isGone()
		}
		select {
		case <-changed:
		case <-c.gone:
			return false
		}
	}
}

func (c *linkConn) isGone() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// readLoop moves what arrives at src into queue until src ends. The end travels through the queue like data, so a
// blackhole holds it back too.
func (c *linkConn) readLoop(src net.Conn, queue chan<- chunk) {
	for {
		buf := make([]byte, linkChunkBytes)
		n, err := src.Read(buf)
		b, _ := c.link.state()
		due := time.Now().Add(b.Delay)
		if n > 0 && !c.push(queue, chunk{data: buf[:n], due: due}) {
			return
		}
		if err != nil {
			c.push(queue, chunk{due: due, reset: !errors.Is(err, io.EOF)})
			return
		}
	}
}

func (c *linkConn) push(queue chan<- chunk, item chunk) bool {
	select {
	case queue <- item:
		return true
	case <-c.gone:
		return false
	}
}

// writeLoop delivers queue to dst. hole is the mode that closes this direction alone.
func (c *linkConn) writeLoop(dst net.Conn, queue <-chan chunk, hole LinkMode, limit func(LinkBehaviour) int64) {
	closed := func(m LinkMode) bool { return m == LinkBlackhole || m == hole }
	var passed int64
	for {
		var item chunk
		select {
		case item = <-queue:
		case <-c.gone:
			return
		}
		if !c.pause(time.Until(item.due)) || !c.passable(closed) {
			return
		}
		if len(item.data) == 0 {
			if item.reset {
				c.close()
			} else {
				halfClose(dst)
			}
			return
		}
		for data := item.data; len(data) > 0; {
			if !c.passable(closed) {
				return
			}
			b, _ := c.link.state()
			part, last := data, false
			if b.Slice > 0 && len(part) > b.Slice {
				part = part[:b.Slice]
			}
			if most := limit(b); most > 0 && int64(len(part)) >= most-passed {
				part, last = part[:max(0, most-passed)], true
			}
			if _, err := dst.Write(part); err != nil {
				c.close()
				return
			}
			passed += int64(len(part))
			if last {
				c.close()
				return
			}
			data = data[len(part):]
			if b.Slice > 0 && !c.pause(b.SlicePause) {
				return
			}
		}
	}
}

// pause waits for d; it returns false when the connection is gone.
func (c *linkConn) pause(d time.Duration) bool {
	if d <= 0 {
		return !c.isGone()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.gone:
		return false
	}
}

// halfClose passes the end of a stream on and leaves the other direction open.
func halfClose(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
		return
	}
	_ = conn.Close()
}
