package harness

import (
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

// HAProxyFrontend is one port that HAProxy balances over backends.
type HAProxyFrontend struct {
	Port     int      // port on 127.0.0.1
	Backends []string // host:port of each server
}

// HAProxyOptions describe an HAProxy in plain TCP mode.
type HAProxyOptions struct {
	Dir       string // directory for the configuration; required, must exist
	Frontends []HAProxyFrontend
	Log       io.Writer // receives what HAProxy prints; nil discards
}

// HAProxyTCP starts HAProxy as a TCP load balancer: round robin, a TCP check every 200 ms (two failures take a server
// out, one success brings it back), a connection to a dead server tried on another one, no idle timeout within an
// hour. It returns when every frontend accepts.
func HAProxyTCP(ctx context.Context, o HAProxyOptions) (*Process, error) {
	path, err := findProgram("haproxy")
	if err != nil {
		return nil, err
	}
	if o.Dir == "" || len(o.Frontends) == 0 {
		return nil, errors.New("check options: Dir and Frontends are required")
	}
	file := filepath.Join(o.Dir, "haproxy-"+strconv.Itoa(o.Frontends[0].Port)+".cfg")
	if err := os.WriteFile(file, []byte(haproxyConfig(o.Frontends)), 0o600); err != nil {
		return nil, fmt.Errorf("write config: %w", err)
	}
	p, err := StartProcess(ctx, ProcessOptions{Path: path, Args: []string{"-db", "-f", file}, Dir: o.Dir, Log: o.Log})
	if err != nil {
		return nil, fmt.Errorf("start haproxy: %w", err)
	}
	for _, f := range o.Frontends {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(f.Port))
		err := p.untilUp(ctx, "haproxy at "+address, func() error {
			conn, err := net.DialTimeout("tcp", address, time.Second)
			if err != nil {
				return err
			}
			return conn.Close()
		})
		if err != nil {
			_ = p.Kill9()
			return nil, err
		}
	}
	return p, nil
}

func haproxyConfig(frontends []HAProxyFrontend) string {
	var b strings.Builder
	b.WriteString(`global
    maxconn 4096
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    retries 3
    option redispatch 1
`)
	for _, f := range frontends {
		fmt.Fprintf(&b, "listen port%d\n    bind 127.0.0.1:%d\n    balance roundrobin\n", f.Port, f.Port)
		for i, backend := range f.Backends {
			fmt.Fprintf(&b, "    server s%d %s check inter 200ms fall 2 rise 1\n", i+1, backend)
		}
	}
	return b.String()
}
