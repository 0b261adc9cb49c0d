package core

import (
	"errors"
	"fmt"
	"strings"

	"kvferry/core/address"
	"kvferry/core/status"

	"golang.org/x/sys/unix"
)

// OpenSegment returns the id of a peer's segment. Every open of one name gives the same id, and the engine's own name gives
// LocalSegment. The first open of a name asks the metadata store, and fails if the store does not know the name. A later one
// asks again if the descriptor is not verified, as after the owner has restarted; it does not fail when there is no answer.
func (e *Engine) OpenSegment(name string) (SegmentID, error) {
	return e.openSegment(name, e.config.DisableMetaCache)
}

// OpenSegmentNoCache is OpenSegment, and fetches a cached descriptor again. If the owner of a known segment does not answer, it
// does not fail: transfers will.
func (e *Engine) OpenSegmentNoCache(name string) (SegmentID, error) {
	return e.openSegment(name, true)
}

func (e *Engine) openSegment(given string, refresh bool) (SegmentID, error) {
	if e.ctx.Err() != nil {
		return -1, closedError()
	}
	name, err := e.segmentName(given)
	if err != nil {
		return -1, err
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
	if err != nil {
		if hint := e.hintAt(given, err); hint != "" {
			err = status.Errorf(status.Of(err, status.Socket), "%w; %s", err, hint)
		}
		return -1, err
	}
	s, err := e.segments.add(name, e.store, e.central, d)
	if err != nil {
		return -1, err
	}
	return s.ID, nil
}

// hintAt says what may be wrong with a name by which no engine was found; "" if nothing is known.
func (e *Engine) hintAt(name string, err error) string {
	parsed, malformed := address.Parse(name, address.NoPort)
	if e.central || malformed != nil {
		return ""
	}
	if errors.Is(err, unix.EINVAL) {
		if doubt := address.DoubtOfHost(parsed.Host); doubt != "" {
			return doubt
		}
	}
	switch {
	case parsed.Port != address.NoPort:
		return ""
	case address.MayMeanPort(name):
		return fmt.Sprintf("%q was taken for an IPv6 address without a port: with one, put the address in brackets", name)
	}
	return fmt.Sprintf("%q has no port, so that of MC_HANDSHAKE_PORT was taken", name)
}

// Opened is OpenSegment for a name that is known without a request: the engine's own name, or that of an open segment whose
// descriptor is verified. It returns false for any other. It fails where the name is empty.
func (e *Engine) Opened(given string) (SegmentID, bool, error) {
	name, err := e.segmentName(given)
	if err != nil || e.ctx.Err() != nil || e.config.DisableMetaCache {
		return -1, false, err
	}
	id, s, ok := e.lookUp(name)
	return id, ok && (s == nil || s.Verified()), nil
}

// segmentName is the spelling of a name in the table of segments. In P2P mode a name is an address, which has several
// spellings.
func (e *Engine) segmentName(name string) (string, error) {
	name = strings.TrimLeft(name, "/")
	if name == "" {
		return "", status.Errorf(status.InvalidArgument, "the segment name is empty")
	}
	if e.central || name == e.name {
		return name, nil
	}
	if name = address.Canonical(name, e.config.HandshakePort); name == address.Canonical(e.name, e.config.HandshakePort) {
		return e.name, nil
	}
	return name, nil
}

// lookUp finds a name that is open: the engine's own, which has no Segment, or a peer's.
func (e *Engine) lookUp(name string) (SegmentID, *Segment, bool) {
	if name == e.name {
		return LocalSegment, nil, true
	}
	if s := e.segments.named(name); s != nil {
		return s.ID, s, true
	}
	return -1, nil, false
}

// segment finds an open segment of a peer.
func (e *Engine) segment(id SegmentID) (*Segment, error) {
	if s := e.segments.numbered(id); s != nil {
		return s, nil
	}
	return nil, status.Errorf(status.InvalidArgument, "segment %d is not open", id)
}

// RemoveLocalSegment removes an open segment of that name: its id is invalid then, and the next open gives a new one. Transfers
// of it that are under way fail, and so do those that another goroutine is submitting at the time.
func (e *Engine) RemoveLocalSegment(given string) error {
	name, err := e.segmentName(given)
	if err != nil {
		return err
	}
	if s := e.segments.remove(name); s != nil {
		e.stager.forget(s)
		for _, t := range e.installed() {
			t.Forget(s)
		}
	}
	return nil
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
		if r.Access != NoAccess {
			addr = uint64(r.Addr)
		}
		return addr == 0
	})
	return addr
}
