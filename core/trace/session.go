package trace

import (
	"time"
)

// Session records the requests of one connection that this engine serves. The goroutines of the session guard it. nil records
// nothing.
type Session struct {
	recorder *Recorder
	peer     string
	key      uint64 // see connectionKey
	requests uint64 // so far
}

// Session begins to record the requests of a connection. peer is its address.
func (r *Recorder) Session(peer string) *Session {
	if r == nil {
		return nil
	}
	return &Session{recorder: r, peer: peer}
}

// Greeted notes the connection's hello.
func (s *Session) Greeted(origin [16]byte, number uint64) {
	if s != nil {
		s.key = connectionKey(origin, number)
	}
}

// Now is clock.Now where something is recorded, and otherwise 0.
func (s *Session) Now() time.Duration {
	if s == nil {
		return 0
	}
	return s.recorder.Now()
}

// Served is a request that was served. Times are by clock.Now; 0 for what did not happen.
type Served struct {
	Write     bool
	ByAddress bool // a WRITE whose payload is copied from the peer's process
	OnDevice  bool // its memory is a device's
	Bytes     uint64
	Began     time.Duration // its header has come
	Received  time.Duration // the payload of a WRITE has come

	// Of all requests that were answered together, see Session.Answered.
	copying, copied, answered time.Duration

	peer        string
	key, number uint64
}

// Next names the next request of the session.
func (s *Session) Next(r Served) Served {
	s.requests++
	r.peer, r.key, r.number = s.peer, s.key, s.requests
	return r
}

// Answered keeps requests that were answered just now, together. copying and copied are when bytes were copied, between the device or
// the peer's process and this one's memory, for those of them that needed it; of a request that passes through several staging
// blocks, those of the last block.
func (s *Session) Answered(all []Served, copying, copied time.Duration) {
	if s == nil || len(all) == 0 {
		return
	}
	now := s.Now()
	r := s.recorder
	r.mu.Lock()
	for _, one := range all {
		one.copying, one.copied, one.answered = copying, copied, now
		r.served.put(one)
	}
	r.mu.Unlock()
	r.file.touch()
}
