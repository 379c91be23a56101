package harness

import (
	"context"
	"fmt"
	"time"
)

const (
	waitFirst = 2 * time.Millisecond
	waitMost  = 200 * time.Millisecond
	waitLimit = time.Minute
)

// Eventually waits until cond returns true. It asks at once, then after 2 ms, then at growing distances up to 200 ms.
// cond also returns an explanation of what it saw; when ctx ends first, the error names what was waited for and the
// last explanation, and wraps the error of ctx. A ctx without a deadline is given one of a minute.
func Eventually(ctx context.Context, what string, cond func() (bool, string)) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, waitLimit)
		defer cancel()
	}
	pause := waitFirst
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		ok, last := cond()
		if ok {
			return nil
		}
		if last == "" {
			last = "no explanation"
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last seen: %s)", what, ctx.Err(), last)
		case <-timer.C:
		}
		pause = min(pause*3/2, waitMost)
		timer.Reset(pause)
	}
}
