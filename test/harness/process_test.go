package harness

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// playChild is the test binary in the role of a started program.
func playChild(role string) int {
	switch role {
	case "stubborn": // ignores SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Minute)
	case "polite": // ends on SIGTERM, counts while it runs
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Println("ready")
		for {
			select {
			case <-term:
				fmt.Println("bye")
				return 0
			case <-time.After(time.Millisecond):
				fmt.Println("tick")
			}
		}
	case "fail":
		return 7
	case "parent": // starts a child and waits to be killed
		p, err := StartProcess(context.Background(), ProcessOptions{Path: os.Args[0], Env: []string{childEnv + "=stubborn"}})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(p.Pid())
		time.Sleep(time.Minute)
	}
	return 0
}

// outputLog collects what a program prints.
type outputLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *outputLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *outputLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func startChild(t *testing.T, role string) (*Process, *outputLog) {
	t.Helper()
	log := &outputLog{}
	p, err := StartProcess(testContext(t), ProcessOptions{Path: os.Args[0], Env: []string{childEnv + "=" + role}, Log: log})
	must(t, err)
	t.Cleanup(func() { must(t, p.Kill9()) })
	return p, log
}

func TestProcessStopAndOutput(t *testing.T) {
	p, log := startChild(t, "polite")
	eventually(t, "the child is ready", func() bool { return strings.HasPrefix(log.String(), "ready") })
	must(t, p.Stop(testContext(t)))
	must(t, p.Stop(testContext(t)))
	if !strings.HasSuffix(log.String(), "bye\n") || p.ExitError() != nil {
		t.Errorf("end %v, output %q", p.ExitError(), log.String())
	}
}

func TestProcessStopKillsTheStubborn(t *testing.T) {
	p, log := startChild(t, "stubborn")
	eventually(t, "the child is ready", func() bool { return log.String() == "ready\n" })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx); err == nil {
		t.Error("no error although the program had to be killed")
	}
	<-p.Exited()
}

func TestProcessPauseAndContinue(t *testing.T) {
	p, log := startChild(t, "polite")
	eventually(t, "the child runs", func() bool { return strings.Contains(log.String(), "tick") })
	must(t, p.Pause())
	eventually(t, "the child is frozen", func() bool { return processState(t, p.Pid()) == "T" })
	frozen := len(log.String())
	must(t, p.Continue())
	eventually(t, "the child goes on", func() bool { return len(log.String()) > frozen })
	must(t, p.Pause())
	must(t, p.Stop(testContext(t))) // a paused program can be stopped too
}

func TestProcessExitIsSeen(t *testing.T) {
	p, _ := startChild(t, "fail")
	<-p.Exited()
	if err := p.ExitError(); err == nil || err.Error() != "exit status 7" {
		t.Errorf("exit error %v", err)
	}
	must(t, p.Kill9())
	if _, err := StartProcess(t.Context(), ProcessOptions{Path: "/does/not/exist"}); err == nil {
		t.Error("a missing program started")
	}
}

func TestProcessDiesWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := StartProcess(ctx, ProcessOptions{Path: os.Args[0], Env: []string{childEnv + "=stubborn"}})
	must(t, err)
	cancel()
	<-p.Exited()
}

func TestProcessDiesWithItsParent(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=parent")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	if processState(t, pid) == "" {
		t.Fatal("the grandchild does not run")
	}
	must(t, cmd.Process.Kill())
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	eventually(t, "the grandchild is gone", func() bool { s := processState(t, pid); return s == "" || s == "Z" })
}

// processState returns the state letter of a process, "" when there is none.
func processState(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return string(rest[:1])
}

func TestMosquittoLogIsParsed(t *testing.T) {
	log := []byte(`1714979289: mosquitto version 2.0.11 starting
1714979289: New connection from 127.0.0.1:40122 on port 1883.
1714979289: New client connected from 127.0.0.1:40122 as meter-7 (p2, c1, k60, u'plant7').
1714979290: New client connected from 127.0.0.1:40123 as harness-probe-77 (p2, c1, k60).
1714979291: New client connected from 127.0.0.1:40124 as odd as it (p gets) (p5, c0, k0).
1714979292: Client meter-7 disconnected.
1714979293: New client connected from 127.0.0.1:40125 as meter-7 (p2, c1, k60, u'plant7').
1714979294: New client connected from 127.0.0.1:40126 as half`)
	want := []string{"meter-7", "odd as it (p gets)", "meter-7"}
	if got := mosquittoClients(log); !slices.Equal(got, want) {
		t.Errorf("clients %q, want %q", got, want)
	}
}
