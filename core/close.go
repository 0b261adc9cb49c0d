package core

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"kvferry/core/status"
)

// An engine is closed like this:
//
//  1. What is in flight is given up, the metadata is withdrawn, and the handshake server closed.
//  2. endTransfers has the transports close their connections, and waits until nothing is under way any more.
//  3. Devices, the metadata store and the engine's own goroutines end.
//
// Each wait is bounded. What is stuck by then, in a call of the system or of a device, keeps the memory that it may touch,
// and the staging blocks that are leased to it: the error names it, all else is given back, and closeLater waits for it.
// When it comes back it finds everything closed.

// Close aborts what is in flight, withdraws the metadata and ends everything, within about a second, or three where a
// central metadata store does not answer. Where something is stuck it gives up after a few times EndingTime: the error has
// ErrInUse in it, and names what may still use memory, and which.
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
	if errors.Is(inOrder(stuck, devices), ErrInUse) {
		go e.closeLater()
	}
	stored := e.store.Close()
	var calls error
	if !e.running.join(e.ending) {
		calls = status.Errorf(status.BatchBusy, "calls that were under way are %w", ErrInUse)
	}
	return inOrder(stuck, devices, calls, withdrawn, served, stored)
}

// endTransfers closes the transports and waits for what is staged. It may be called again when something was stuck.
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

// closeLater closes the devices when nothing is stuck any more.
func (e *Engine) closeLater() {
	for errors.Is(e.endTransfers(), ErrInUse) {
	}
	for errors.Is(e.devices.close(e.ending, false), ErrInUse) {
	}
}

// group is goroutines that end, and can be waited for with a time limit. Once join was called, none is added but
// by one of them.
type group struct {
	sync.WaitGroup
	joining sync.Once
	ended   chan struct{}
}

// join reports whether they have ended by then. Any number may call it.
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
