package device

import (
	"fmt"
	"sync"
	"time"
)

// hostStream is a queue of copies and events, and the goroutine that does them.
type hostStream struct {
	device  *hostDevice
	drained hostEvent
	ended   chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex
	work   sync.Cond // the queue is not empty, or closed was set
	queue  []hostStep
	closed bool
	failed error // the first failure, after which nothing is copied
}

// hostStep is a copy, or an event.
type hostStep struct {
	kind   Kind
	copy   Copy
	event  *hostEvent
	record uint64
}

func (s *hostStream) Copy(kind Kind, copies []Copy) (issued int, err error) {
	if err := s.device.check(); err != nil {
		return 0, err
	}
	for i, c := range copies {
		if err := s.accept(kind, c); err != nil {
			return i, err
		}
	}
	return len(copies), nil
}

func (s *hostStream) CopyBatch(kind Kind, copies []Copy) error {
	if !s.device.host.Batches || kind == WithinDevice {
		return ErrNoBatches
	}
	_, err := s.Copy(kind, copies)
	return err
}

func (s *hostStream) CopyMatrix(kind Kind, rows Rows) error {
	if !s.device.host.Batches || kind == WithinDevice {
		return ErrNoMatrix
	}
	var copies []Copy
	for i := range uintptr(rows.Count) {
		copies = append(copies, Copy{rows.Dst + i*uintptr(rows.DstPitch), rows.Src + i*uintptr(rows.SrcPitch), rows.Length})
	}
	_, err := s.Copy(kind, copies)
	return err
}

func (s *hostStream) accept(kind Kind, c Copy) error {
	s.device.mu.RLock()
	_, _, err := s.device.resolve(kind, c)
	s.device.mu.RUnlock()
	if err != nil {
		return err
	}
	return s.push(hostStep{kind: kind, copy: c})
}

func (s *hostStream) push(step hostStep) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("%s: the stream is closed", s.device.name)
	}
	s.queue = append(s.queue, step)
	s.work.Signal()
	return nil
}

func (s *hostStream) Record(e Event) error {
	if err := s.device.check(); err != nil {
		return err
	}
	return s.record(e.(*hostEvent))
}

func (s *hostStream) record(e *hostEvent) error {
	return s.push(hostStep{event: e, record: e.next()})
}

func (s *hostStream) Drain(timeout time.Duration) error {
	if err := s.device.check(); err != nil {
		return err
	}
	if err := s.record(&s.drained); err != nil {
		return err
	}
	done, err := s.drained.await(timeout)
	if err == nil && !done {
		err = fmt.Errorf("%s: the stream is busy after %v", s.device.name, timeout)
	}
	return err
}

// Close drops the steps in the queue, and waits for those that have begun.
func (s *hostStream) Close() error {
	if err := s.device.check(); err != nil {
		return err
	}
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.work.Signal()
	s.mu.Unlock()
	if again {
		return fmt.Errorf("%s: the stream is closed already", s.device.name)
	}
	<-s.ended
	s.device.count(-1, 0)
	return nil
}

func (s *hostStream) run() {
	defer close(s.ended)
	var steps []hostStep
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.closed {
			s.work.Wait()
		}
		if s.closed {
			s.mu.Unlock()
			return
		}
		steps, s.queue = s.queue, steps[:0]
		s.mu.Unlock()
		for i := range steps {
			s.do(&steps[i])
		}
	}
}

func (s *hostStream) do(step *hostStep) {
	switch {
	case step.event != nil:
		step.event.happen(step.record, s.failed)
	case s.failed == nil:
		s.device.mu.RLock()
		defer s.device.mu.RUnlock()
		dst, src, err := s.device.resolve(step.kind, step.copy)
		if err != nil { // the memory was freed meanwhile
			s.failed = err
			return
		}
		copy(dst, src)
	}
}
