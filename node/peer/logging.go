package peer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// repeatAfter is how long a library's warning stays unrepeated. Raft says the same thing at every try to reach a gateway that is down.
const repeatAfter = 10 * time.Second

// repeats remembers which messages were logged lately. Messages are constant texts of a library, so there are few.
type repeats struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (r *repeats) quiet(msg string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if t, ok := r.last[msg]; ok && now.Sub(t) < repeatAfter {
		return true
	}
	if r.last == nil || len(r.last) >= 256 {
		r.last = map[string]time.Time{}
	}
	r.last[msg] = now
	return false
}

// raftLogger is the hclog.Logger that Raft writes to. Raft's errors are about peers that cannot be reached more often than not, so
// they are warnings here; what is really wrong shows in the status and the metrics.
type raftLogger struct {
	logger  *slog.Logger
	name    string
	implied []any
	repeats *repeats
}

func newRaftLogger(l *slog.Logger) hclog.Logger {
	return &raftLogger{logger: l.With("part", "raft"), name: "raft", repeats: &repeats{}}
}

// Log implements hclog.Logger.
func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch {
	case level >= hclog.Warn:
		to = slog.LevelWarn
	case level == hclog.Info:
		to = slog.LevelInfo
	}
	if !l.logger.Enabled(context.Background(), to) || to == slog.LevelWarn && l.repeats.quiet(msg) {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(f[0].(string), f[1:]...)
		}
	}
	l.logger.Log(context.Background(), to, msg, args...)
}

// Trace implements hclog.Logger.
func (l *raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }

// Debug implements hclog.Logger.
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }

// Info implements hclog.Logger.
func (l *raftLogger) Info(msg string, args ...any) { l.Log(hclog.Info, msg, args...) }

// Warn implements hclog.Logger.
func (l *raftLogger) Warn(msg string, args ...any) { l.Log(hclog.Warn, msg, args...) }

// Error implements hclog.Logger.
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

// IsTrace implements hclog.Logger.
func (l *raftLogger) IsTrace() bool { return false }

// IsDebug implements hclog.Logger.
func (l *raftLogger) IsDebug() bool {
	return l.logger.Enabled(context.Background(), slog.LevelDebug)
}

// IsInfo implements hclog.Logger.
func (l *raftLogger) IsInfo() bool { return l.logger.Enabled(context.Background(), slog.LevelInfo) }

// IsWarn implements hclog.Logger.
func (l *raftLogger) IsWarn() bool { return l.logger.Enabled(context.Background(), slog.LevelWarn) }

// IsError implements hclog.Logger.
func (l *raftLogger) IsError() bool { return l.IsWarn() }

// ImpliedArgs implements hclog.Logger.
func (l *raftLogger) ImpliedArgs() []any { return l.implied }

// With implements hclog.Logger.
func (l *raftLogger) With(args ...any) hclog.Logger {
	n := *l
	n.logger = l.logger.With(args...)
	n.implied = append(append([]any{}, l.implied...), args...)
	return &n
}

// Name implements hclog.Logger.
func (l *raftLogger) Name() string { return l.name }

// Named implements hclog.Logger.
func (l *raftLogger) Named(name string) hclog.Logger {
	n := *l
	n.name = l.name + "." + name
	return &n
}

// ResetNamed implements hclog.Logger.
func (l *raftLogger) ResetNamed(name string) hclog.Logger {
	n := *l
	n.name = name
	return &n
}

// SetLevel implements hclog.Logger; the slog handler decides.
func (l *raftLogger) SetLevel(hclog.Level) {}

// GetLevel implements hclog.Logger.
func (l *raftLogger) GetLevel() hclog.Level {
	if l.IsDebug() {
		return hclog.Debug
	}
	return hclog.Info
}

// StandardLogger implements hclog.Logger.
func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return newLineLogger(l.logger)
}

// StandardWriter implements hclog.Logger.
func (l *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return &lineWriter{logger: l.logger, repeats: l.repeats}
}

// newLineLogger returns a standard logger whose lines, such as "[WARN] memberlist: text", become events of the logger.
func newLineLogger(l *slog.Logger) *log.Logger {
	return log.New(&lineWriter{logger: l, repeats: &repeats{}}, "", 0)
}

type lineWriter struct {
	logger  *slog.Logger
	repeats *repeats
}

// maxLine bounds one logged line: memberlist prints what strangers send.
const maxLine = 256

// Write implements io.Writer. log.Logger calls it once for each line.
func (w *lineWriter) Write(b []byte) (int, error) {
	line := bytes.TrimSpace(b)
	level := slog.LevelWarn
	for _, l := range []struct {
		prefix string
		level  slog.Level
	}{{"[ERR] ", slog.LevelWarn}, {"[WARN] ", slog.LevelWarn}, {"[INFO] ", slog.LevelInfo}, {"[DEBUG] ", slog.LevelDebug}} {
		if rest, ok := bytes.CutPrefix(line, []byte(l.prefix)); ok {
			line, level = rest, l.level
			break
		}
	}
	if w.logger.Enabled(context.Background(), level) {
		text := fmt.Sprintf("%q", line[:min(len(line), maxLine)])
		text = text[1 : len(text)-1]
		if level < slog.LevelWarn || !w.repeats.quiet(text) {
			w.logger.Log(context.Background(), level, text)
		}
	}
	return len(b), nil
}
