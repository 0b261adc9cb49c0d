package core

import (
	"context"
	"sync"
	"time"

	"kvferry/core/metadata"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// fetch is one request for a segment's descriptor. Other callers that want the descriptor meanwhile wait for the same request: if
// the peer does not answer, all of them wait for one time-out, and not one after the other.
type fetch struct {
	done       chan struct{} // closed when the rest is set
	descriptor *metadata.Descriptor
	err        error
	canceled   bool // the context of the caller that started it has ended: the others start another one
}

// Refresh fetches the descriptor again, unless stale, the one that the caller has used, was already replaced. It returns the
// current descriptor; on an error the cached one stays.
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

// fetch makes the request f, and sets its result.
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

// refuse is why a descriptor that was fetched must not replace the cached one: its version is older. It is accepted nevertheless if
// it is that of another kvferry engine, and the cached one is not verified: the new engine's clock may be slow, and connections
// prove its identity.
func (s *Segment) refuse(d *metadata.Descriptor) error {
	cached := s.descriptor.Load()
	err := d.CheckVersion(cached)
	if err != nil && d.Identity != "" && d.Identity != cached.Identity && !s.Verified() {
		return nil
	}
	return err
}

// refresh fetches a segment's descriptor again. A failure is only logged, since the cached one may still be right.
func (e *Engine) refresh(s *Segment) {
	if _, err := s.Refresh(e.ctx, s.Descriptor()); err != nil {
		e.log.Info("segment descriptor not refreshed", zap.String("segment", s.Name), zap.Error(err))
	}
}

// SyncSegments starts to fetch the descriptors of all open segments again, in the background: some callers call it after every
// transfer. The cached descriptor of a peer that does not answer stays.
func (e *Engine) SyncSegments() error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	select {
	case e.sync <- struct{}{}:
	default: // the last request has not begun yet
	}
	return nil
}

// keepSynced refreshes the descriptors after SyncSegments, and every MC_TE_METADATA_REFRESH_INTERVAL_SECONDS.
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
