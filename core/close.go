package core

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"kvferry/core/status"
)

// An engine is closed in these steps:
//
//  1. Close gives up all batches, withdraws the metadata, and closes the handshake server.
//  2. endTransfers closes the transports with their connections, and waits until no transfer is under way.
//  3. Devices, the metadata store, the trace and the engine's own goroutines end.
//
// Each wait is limited. A transfer that is stuck in a system call or on a device keeps the memory that it may touch, and its
// staging blocks: the error names it, everything else is released, and closeLater waits for it. The error also names memory that
// a copy may still touch which was given up before (Registry.Hold).

// Close aborts all batches, withdraws the metadata and ends everything, within about a second, or three where a central metadata
// store does not answer. If a transfer is stuck, it returns after a few times EndingTime: the error has ErrInUse in it, and names
// the transfer and the memory that it may still use. So it does where a copy was given up before, and has not ended.
func (e *Engine) Close() error {
	var err error
	e.closing.Do(func() { err = e.close() })
	return err
}

func (e *Engine) close() error {
	e.starting.Lock()
	e.cancel()
	e.starting.Unlock()
	e.batches.Range(func(_, b any) bool {
		b.(*Batch).abort(ErrClosed)
		return true
	})
	e.memory.close()
	withdrawn, served := e.Withdraw(), e.server.Close()

	e.installing.Lock() // waits for an Install under way, and keeps out any later one
	defer e.installing.Unlock()
	e.stager.close()
	stuck := e.endTransfers()
	devices := e.devices.close(e.ending, stuck != nil)
	held := e.memory.stillHeld()
	if errors.Is(inOrder(stuck, devices), ErrInUse) {
		go e.closeLater()
	}
	stored, policy := e.store.Close(), e.policy.Close()
	e.trace.Close()
	var calls error
	if !e.running.join(e.ending) {
		calls = status.Errorf(status.BatchBusy, "calls that were under way are %w", ErrInUse)
	}
	return inOrder(stuck, held, devices, calls, withdrawn, served, stored, policy)
}

// endTransfers closes the transports, and waits for copies within the process and for staged ones. It may be called again if
// something was stuck.
func (e *Engine) endTransfers() error {
	var errs []error
	for _, t := range e.installed() {
		errs = append(errs, t.Close())
	}
	errs = append(errs, e.local.close(e.ending), e.stager.wait(e.ending))
	err := inOrder(errs...)
	if users := e.unfinished(); err != nil && users != "" {
		err = fmt.Errorf("%w; local memory is in use by %s", err, users)
	}
	return err
}

// closeLater waits for the transfers that are stuck, and then closes the devices.
func (e *Engine) closeLater() {
	for errors.Is(e.endTransfers(), ErrInUse) {
	}
	for errors.Is(e.devices.close(e.ending, false), ErrInUse) {
	}
}

// group is a WaitGroup with a time limit. Once join was called, only its own goroutines may add others.
type group struct {
	sync.WaitGroup
	joining sync.Once
	ended   chan struct{}
}

// join waits for the goroutines, and reports whether they have ended within the limit. It may be called several times at once.
func (g *group) join(limit time.Duration) bool {
	g.joining.Do(func() {
		g.ended = make(chan struct{})
		go func() {
			g.Wait()
			close(g.ended)
		}()
	})
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-g.ended:
		return true
	case <-timer.C:
		return false
	}
}

// spawn runs f in a goroutine that Close waits for, or reports false when the engine is closed.
func (e *Engine) spawn(f func()) bool {
	if !e.enter() {
		return false
	}
	go func() {
		defer e.running.Done()
		f()
	}()
	return true
}

// enter makes Close wait until the caller calls running.Done. It returns false when the engine is closed.
func (e *Engine) enter() bool {
	e.starting.Lock()
	defer e.starting.Unlock()
	if e.ctx.Err() != nil {
		return false
	}
	e.running.Add(1)
	return true
}

func closedError() error { return status.Errorf(status.Context, "%w", ErrClosed) }
