package sockio

import "sync/atomic"

// MaxRecords is how many records a connection under TLS carries in a direction before it is to be replaced by a new one, with new
// keys. RFC 8446 (5.5) allows 2^24.5 for AES-GCM, and crypto/tls never asks for new keys by itself. What is under way when a lane
// finds that a connection is worn is some hundred records.
const MaxRecords = 1 << 24

// wear follows how worn the keys of a connection are. Each direction counts its records, and only the flag is shared.
type wear struct {
	limit uint64
	worn  atomic.Bool
}

// note takes the number of records that a direction has carried.
func (w *wear) note(records uint64) {
	if records >= w.limit {
		w.worn.Store(true)
	}
}

// LimitRecords has the connection be worn after so many records, instead of MaxRecords.
func (i *Inner) LimitRecords(limit uint64) { i.wear.limit = limit }

// Worn reports whether a connection under TLS has carried MaxRecords in a direction. It goes on working. Any goroutine may ask.
func (s *Socket) Worn() bool { return s.secure != nil && s.secure.inner.wear.worn.Load() }
