package core

import (
	"context"
	"sync"
	"time"

	"kvferry/core/metadata"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// fetch is one request for a segment's descriptor. Who wants the descriptor meanwhile waits for it too, so that a peer
// that does not answer costs all of them one time-out, not one each.
type fetch struct {
	done       chan struct{} // closed when the rest is set
	descriptor *metadata.Descriptor
	err        error
	canceled   bool // the context of who started it has ended, which is nothing to the others
}

// Refresh fetches the descriptor again, unless somebody has replaced stale, the one that the caller found wanting,
// meanwhile. It returns the current descriptor; on an error the cached one stays.
func (s *Segment) Refresh(ctx context.Context, stale *metadata.Descriptor) (*metadata.Descriptor, error) {
	for {
		s.mu.Lock()
		if current := s.descriptor.Load(); current != stale {
			s.mu.Unlock()
			return current, nil
		}
		f := s.fetching
		if f == nil {
			f = &fetch{done: make(chan struct{})}
			s.fetching = f
			s.mu.Unlock()
			s.fetch(ctx, f)
			return f.descriptor, f.err
		}
		s.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, status.Errorf(status.Metadata, "fetching the descriptor of segment %q: %w", s.Name, ctx.Err())
		}
		if !f.canceled {
			return f.descriptor, f.err
		}
	}
}

// fetch does what f stands for.
func (s *Segment) fetch(ctx context.Context, f *fetch) {
	d, err := s.store.Fetch(ctx, s.Name)
	f.canceled = err != nil && ctx.Err() != nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		f.err = err
		if !f.canceled {
			s.NoteUnreachable()
		}
	} else if f.err = s.refuse(d); f.err == nil {
		f.descriptor = d
		s.descriptor.Store(d)
		s.confirm()
	}
	s.fetching = nil
	close(f.done)
}

// refuse is why a descriptor that was fetched must not replace the cached one: that is of a later version. A kvferry engine
// may have come in the place of one that is not known to live, with a clock that is behind: connections prove who it is.
func (s *Segment) refuse(d *metadata.Descriptor) error {
	cached := s.descriptor.Load()
	err := d.CheckVersion(cached)
	if err != nil && d.Identity != "" && d.Identity != cached.Identity && !s.Verified() {
		return nil
	}
	return err
}

// refresh fetches a segment's descriptor again; a failure is logged only, since the cached one may still be good.
func (e *Engine) refresh(s *Segment) {
	if _, err := s.Refresh(e.ctx, s.Descriptor()); err != nil {
		e.log.Info("segment descriptor not refreshed", zap.String("segment", s.Name), zap.Error(err))
	}
}

// SyncSegments has the descriptors of all opened segments fetched again, in the background: some callers ask for it
// after every transfer. Peers that do not answer keep their cached one.
func (e *Engine) SyncSegments() error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	select {
	case e.sync <- struct{}{}:
	default: // asked for already, and not begun yet
	}
	return nil
}

// keepSynced refreshes the descriptors when SyncSegments asks, and every MC_TE_METADATA_REFRESH_INTERVAL_SECONDS.
func (e *Engine) keepSynced() {
	var tick <-chan time.Time
	if e.config.MetaRefreshInterval > 0 {
		ticker := time.NewTicker(e.config.MetaRefreshInterval)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.sync:
		case <-tick:
		}
		e.refreshAll()
	}
}

func (e *Engine) refreshAll() {
	const atOnce = 16
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for _, s := range e.segments.all() {
		slots <- struct{}{}
		all.Go(func() {
			e.refresh(s)
			<-slots
		})
	}
	all.Wait()
}
