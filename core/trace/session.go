package trace

import (
	"time"

	"kvferry/core/clock"
)

// Session records the requests of one connection that this engine serves. The goroutines of the session guard it. nil records
// nothing.
type Session struct {
	recorder *Recorder
	peer     string
	key      uint64 // see connectionKey; it stays once a request was recorded
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

// Now is clock.Now where requests are recorded now, and otherwise 0.
func (s *Session) Now() time.Duration {
	if s == nil || s.recorder.turnsLeft.used.Load() {
		return 0
	}
	return clock.Now()
}

// mostTogether is how many requests one Served stands for.
const mostTogether = 8

// Served is a request that was served, or small ones that came together and were answered together. Times are by clock.Now; 0 for
// what did not happen.
type Served struct {
	Write     bool
	ByAddress bool // a WRITE whose payload is copied from the peer's process
	OnDevice  bool // its memory is a device's
	Bytes     uint64
	Began     time.Duration // its header has come
	Received  time.Duration // the payload of a WRITE has come

	// Of all requests that were answered together, see Session.Answered.
	copying, copied, answered time.Duration

	session  *Session
	number   uint64 // of the first one, in the session
	requests uint64
}

// Record appends the next request of the session to those that wait to be answered together. One that began at 0 is only counted.
func (s *Session) Record(to []Served, r Served) []Served {
	s.requests++
	if r.Began == 0 {
		return to
	}
	if n := len(to); n > 0 && r.Bytes <= smallRequest && to[n-1].takes(&r, s.requests) {
		to[n-1].Bytes += r.Bytes
		to[n-1].requests++
		return to
	}
	r.session, r.number, r.requests = s, s.requests, 1
	return append(to, r)
}

// takes reports whether a small request with a number came together with those of the record.
func (s *Served) takes(r *Served, number uint64) bool {
	return s.Write == r.Write && s.ByAddress == r.ByAddress && s.OnDevice == r.OnDevice && s.Began == r.Began &&
		s.Received == r.Received && s.number+s.requests == number && s.requests < mostTogether &&
		s.Bytes <= s.requests*smallRequest
}

// Answered keeps requests that were answered just now, together. copying and copied are when bytes were copied, between the device or
// the peer's process and this one's memory, for those of them that needed it; of a request that passes through several staging
// blocks, those of the last block.
func (s *Session) Answered(all []Served, copying, copied time.Duration) {
	if s == nil || len(all) == 0 {
		return
	}
	now := clock.Now()
	bytes := uint64(0)
	for i := range all {
		all[i].copying, all[i].copied, all[i].answered = copying, copied, now
		bytes += all[i].Bytes
	}
	r := s.recorder
	r.mu.Lock()
	for i := range all {
		r.served.put(all[i])
	}
	if bytes <= shortTurn {
		r.turnsLeft.spend(now)
	}
	r.mu.Unlock()
	r.file.touch()
}
