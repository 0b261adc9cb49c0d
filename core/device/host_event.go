package device

import (
	"errors"
	"sync"
	"time"
)

// hostEvent counts how often it was recorded, and how many of these have happened.
type hostEvent struct {
	device *hostDevice
	signal chan struct{} // has an element when happened may have changed

	mu       sync.Mutex
	recorded uint64
	happened uint64
	failed   error
	timer    *time.Timer
}

func (e *hostEvent) next() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.recorded++
	return e.recorded
}

func (e *hostEvent) happen(record uint64, failed error) {
	e.mu.Lock()
	e.happened, e.failed = max(e.happened, record), failed
	e.mu.Unlock()
	select {
	case e.signal <- struct{}{}:
	default:
	}
}

func (e *hostEvent) state() (happened bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.recorded == 0:
		return false, errors.New("the event was never recorded")
	case e.happened < e.recorded:
		return false, nil
	}
	return true, e.failed
}

func (e *hostEvent) Wait(timeout time.Duration) (done bool, err error) {
	if err := e.device.check(); err != nil {
		return false, err
	}
	return e.await(timeout)
}

func (e *hostEvent) await(timeout time.Duration) (done bool, err error) {
	if done, err := e.state(); done || err != nil {
		return done, err
	}
	if e.timer == nil {
		e.timer = time.NewTimer(timeout)
	} else {
		e.timer.Reset(timeout)
	}
	defer e.timer.Stop()
	for {
		select {
		case <-e.signal:
			if done, err := e.state(); done || err != nil {
				return done, err
			}
		case <-e.timer.C:
			return e.state()
		}
	}
}

func (e *hostEvent) Close() error {
	if err := e.device.check(); err != nil {
		return err
	}
	e.device.count(0, -1)
	return nil
}
