package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// ProcessOptions describe a program to start.
type ProcessOptions struct {
	Path string    // file to run; required
	Args []string  // arguments without the program's name
	Env  []string  // added to the environment of this process
	Dir  string    // working directory; "" is that of this process
	Log  io.Writer // receives standard output and standard error, from one goroutine; nil discards
}

// Process is a started program. It is killed when the context given to StartProcess ends and when this process dies.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // result of Wait, readable once exited is closed
}

// stopTimeout bounds Stop for a context without a deadline of its own.
const stopTimeout = 15 * time.Second

// StartProcess starts a program.
func StartProcess(ctx context.Context, o ProcessOptions) (*Process, error) {
	cmd := exec.CommandContext(ctx, o.Path, o.Args...)
	cmd.Dir = o.Dir
	cmd.Env = append(os.Environ(), o.Env...)
	cmd.Stdout, cmd.Stderr = o.Log, o.Log
	cmd.WaitDelay = 2 * time.Second // for the output pipe, if a grandchild keeps it
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &Process{cmd: cmd, exited: make(chan struct{})}
	started := make(chan error, 1)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start process: %w", err)
	}
	return p, nil
}

// run starts the program and waits for it on one thread that lives as long as the program: the kernel sends the
// parent-death signal when the thread that created the child ends, not when the process does.
func (p *Process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	close(p.exited)
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Exited is closed when the program has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// ExitError returns how the program ended: nil for status 0, and nil while it runs.
func (p *Process) ExitError() error {
	select {
	case <-p.exited:
		return p.err
	default:
		return nil
	}
}

// Kill9 sends SIGKILL and waits for the end. It is idempotent.
func (p *Process) Kill9() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill process: %w", err)
	}
	<-p.exited
	return nil
}

// Stop sends SIGTERM, to a paused program SIGCONT too, and waits for the end. When ctx ends first (or 15 s pass, if
// ctx has no deadline) the program is killed and an error returned. It is idempotent.
func (p *Process) Stop(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, stopTimeout)
		defer cancel()
	}
	if err := errors.Join(p.signal(syscall.SIGTERM), p.signal(syscall.SIGCONT)); err != nil {
		return fmt.Errorf("stop process: %w", err)
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		_ = p.Kill9()
		return fmt.Errorf("stop process: killed, it did not end by itself: %w", ctx.Err())
	}
}

// Pause freezes the program (SIGSTOP); its sockets stay open and answer nothing.
func (p *Process) Pause() error { return p.signal(syscall.SIGSTOP) }

// Continue lets a paused program go on (SIGCONT).
func (p *Process) Continue() error { return p.signal(syscall.SIGCONT) }

// signal sends s; a program that has ended is no error.
func (p *Process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v: %w", s, err)
	}
	return nil
}

// findProgram looks for a program on PATH and in the directory of system programs, which an ordinary user's PATH
// lacks.
func findProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	path, err := exec.LookPath("/usr/sbin/" + name)
	if err != nil {
		return "", fmt.Errorf("find program: %w", err)
	}
	return path, nil
}

// untilUp waits until probe succeeds and fails at once when the program ends.
func (p *Process) untilUp(ctx context.Context, what string, probe func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var ended error
	err := Eventually(ctx, what, func() (bool, string) {
		select {
		case <-p.exited:
			ended = fmt.Errorf("wait for %s: the program ended: %v", what, p.err)
			return true, ""
		default:
		}
		if err := probe(); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	return errors.Join(ended, err)
}
