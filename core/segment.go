package core

import (
	"context"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/address"
	"kvferry/core/metadata"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// Segment is a peer's memory, opened by name. It stays valid as long as the engine, also when it was removed.
type Segment struct {
	ID   SegmentID
	Name string

	store      metadata.Store
	central    bool // descriptors are in a store that engines share, and do not come from the owner
	descriptor atomic.Pointer[metadata.Descriptor]
	proof      proof
	removed    atomic.Bool

	mu       sync.Mutex
	fetching *fetch // nil while nobody fetches
}

// fetch is one request for a segment's descriptor. Who wants the descriptor meanwhile waits for it too, so that a peer
// that does not answer costs all of them one time-out, not one each.
type fetch struct {
	done       chan struct{} // closed when the rest is set
	descriptor *metadata.Descriptor
	err        error
	canceled   bool // the context of who started it has ended, which is nothing to the others
}

// Descriptor is the cached descriptor of the segment. It is shared: nobody changes it.
func (s *Segment) Descriptor() *metadata.Descriptor { return s.descriptor.Load() }

// Removed is why no transport takes work for the segment any more; nil while it is open.
func (s *Segment) Removed() error {
	if s.removed.Load() {
		return status.Errorf(status.InvalidArgument, "segment %q was removed", s.Name)
	}
	return nil
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

// DataHosts are the hosts at which the data port may be that a descriptor of the segment speaks of, without brackets, in the
// order in which to try them: the one that the descriptor names, and that of its owner's handshake port. They differ where
// the owner knows itself by another address than this engine does, behind NAT or in a container. The handshake port comes
// first where the named host is a loopback address, or none. It is left out for an owner without an identity that did not
// hand out the descriptor itself: nothing would tell whose data port is there.
func (s *Segment) DataHosts(ctx context.Context, d *metadata.Descriptor) ([]string, error) {
	if d.DataHost != "" && d.Identity == "" && s.central {
		return []string{d.DataHost}, nil
	}
	handshake, err := s.handshakeHost(ctx)
	switch {
	case d.DataHost == "" && err != nil:
		return nil, err
	case d.DataHost == "" || d.DataHost == handshake:
		return []string{handshake}, nil
	case err != nil:
		return []string{d.DataHost}, nil
	case address.IsElsewhere(d.DataHost):
		return []string{d.DataHost, handshake}, nil
	}
	return []string{handshake, d.DataHost}, nil
}

// handshakeHost is the host of the owner's handshake port.
func (s *Segment) handshakeHost(ctx context.Context) (string, error) {
	peer, err := s.store.HandshakeAddress(ctx, s.Name)
	if err != nil {
		return "", err
	}
	host, _, err := net.SplitHostPort(peer)
	if err != nil {
		return "", status.Errorf(status.Metadata, "handshake address of segment %q: %w", s.Name, err)
	}
	return host, nil
}

// segments are the peers' segments that an engine has opened: one for each name.
type segments struct {
	mu     sync.RWMutex
	byName map[string]*Segment
	byID   map[SegmentID]*Segment
}

// lastSegment is the id of the segment that was opened last in the process, by whichever engine. Ids are never used again:
// one of an engine that is closed names no segment of another engine.
var lastSegment atomic.Int64

func newSegments() *segments {
	return &segments{byName: map[string]*Segment{}, byID: map[SegmentID]*Segment{}}
}

func (t *segments) named(name string) *Segment {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byName[name]
}

func (t *segments) numbered(id SegmentID) *Segment {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

func (t *segments) all() []*Segment {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]*Segment, 0, len(t.byID))
	for _, s := range t.byID {
		all = append(all, s)
	}
	return all
}

// add returns the segment of that name, made now if there was none, and counts no id twice.
func (t *segments) add(name string, store metadata.Store, central bool, d *metadata.Descriptor) (*Segment, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byName[name]; s != nil {
		return s, nil
	}
	id := lastSegment.Add(1)
	if id > math.MaxInt32 {
		return nil, status.Errorf(status.Context, "segment %q: this process has opened as many segments as there are ids", name)
	}
	s := &Segment{ID: SegmentID(id), Name: name, store: store, central: central}
	s.descriptor.Store(d)
	s.confirm()
	t.byName[name], t.byID[s.ID] = s, s
	return s, nil
}

func (t *segments) remove(name string) *Segment {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byName[name]
	if s != nil {
		s.removed.Store(true)
		delete(t.byName, name)
		delete(t.byID, s.ID)
	}
	return s
}

// OpenSegment returns the id of a peer's segment; every open of one name gives the same id, and the own name gives
// LocalSegment. The first open of a name asks the metadata store, and fails when it does not know the name. A later one
// asks again when the owner is not known to live, as after it has restarted; it does not fail when nobody answers.
func (e *Engine) OpenSegment(name string) (SegmentID, error) {
	return e.openSegment(name, e.config.DisableMetaCache)
}

// OpenSegmentNoCache is OpenSegment with the cached descriptor fetched again. That a known segment's owner does not
// answer is no error: the transfers will find out.
func (e *Engine) OpenSegmentNoCache(name string) (SegmentID, error) {
	return e.openSegment(name, true)
}

func (e *Engine) openSegment(given string, refresh bool) (SegmentID, error) {
	name := e.segmentName(given)
	switch {
	case e.ctx.Err() != nil:
		return -1, closedError()
	case name == "":
		return -1, status.Errorf(status.InvalidArgument, "a segment has no name")
	}
	if id, s, ok := e.lookUp(name); ok {
		if s != nil && (refresh || !s.Verified()) {
			e.refresh(s)
		}
		return id, nil
	}
	if len(e.installed()) == 0 {
		return -1, status.Errorf(status.NotSupportedTransport, "segment %q cannot be opened before a transport is installed", name)
	}
	d, err := e.store.Fetch(e.ctx, name)
	if err != nil && !e.central && address.MayMeanPort(given) {
		err = status.Errorf(status.Of(err, status.Socket), "%w; %q was taken for an IPv6 address without a port: with one, put the address in brackets",
			err, given)
	}
	if err != nil {
		return -1, err
	}
	s, err := e.segments.add(name, e.store, e.central, d)
	if err != nil {
		return -1, err
	}
	return s.ID, nil
}

// Opened is OpenSegment for a name that needs no answer from anybody: the own one, or one that is open and whose owner is
// known to live. false for any other.
func (e *Engine) Opened(name string) (SegmentID, bool) {
	if e.ctx.Err() != nil || e.config.DisableMetaCache {
		return -1, false
	}
	id, s, ok := e.lookUp(e.segmentName(name))
	return id, ok && (s == nil || s.Verified())
}

// segmentName is the one spelling that segments are listed by: in P2P mode a name is an address, of which there are several.
func (e *Engine) segmentName(name string) string {
	name = strings.TrimLeft(name, "/")
	if e.central || name == e.name {
		return name
	}
	if name = address.Canonical(name, e.config.HandshakePort); name == address.Canonical(e.name, e.config.HandshakePort) {
		return e.name
	}
	return name
}

// lookUp finds a name that is open: the own one, which has no Segment, or a peer's.
func (e *Engine) lookUp(name string) (SegmentID, *Segment, bool) {
	if name == e.name {
		return LocalSegment, nil, true
	}
	if s := e.segments.named(name); s != nil {
		return s.ID, s, true
	}
	return -1, nil, false
}

// refresh fetches a segment's descriptor again; a failure is logged only, since the cached one may still be good.
func (e *Engine) refresh(s *Segment) {
	if _, err := s.Refresh(e.ctx, s.Descriptor()); err != nil {
		e.log.Info("segment descriptor not refreshed", zap.String("segment", s.Name), zap.Error(err))
	}
}

// segment finds an opened segment other than the own one.
func (e *Engine) segment(id SegmentID) (*Segment, error) {
	if s := e.segments.numbered(id); s != nil {
		return s, nil
	}
	return nil, status.Errorf(status.InvalidArgument, "segment %d is not open", id)
}

// RemoveLocalSegment forgets a cached peer of that name: its id is invalid then, and the next open gives a new one. What is
// under way to it fails, also what another goroutine is just submitting.
func (e *Engine) RemoveLocalSegment(name string) error {
	if name = e.segmentName(name); name == "" {
		return status.Errorf(status.InvalidArgument, "a segment has no name")
	}
	if s := e.segments.remove(name); s != nil {
		e.stager.forget(s)
		for _, t := range e.installed() {
			t.Forget(s)
		}
	}
	return nil
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

// FirstBuffer returns the base address of a segment's first buffer in the order of registration, or 0 when it has
// none. A cached descriptor that shows none is fetched again.
func (e *Engine) FirstBuffer(name string) (uint64, error) {
	id, err := e.OpenSegment(name)
	if err != nil {
		return 0, err
	}
	if id == LocalSegment {
		return e.firstLocalBuffer(), nil
	}
	s, err := e.segment(id)
	if err != nil {
		return 0, err
	}
	d := s.Descriptor()
	if len(d.Buffers) == 0 {
		if d, err = s.Refresh(e.ctx, d); err != nil {
			return 0, err
		}
	}
	if len(d.Buffers) == 0 {
		return 0, nil
	}
	return d.Buffers[0].Addr, nil
}

func (e *Engine) firstLocalBuffer() (addr uint64) {
	e.memory.Each(func(r *Region) bool {
		if r.Remote {
			addr = uint64(r.Addr)
		}
		return addr == 0
	})
	return addr
}
