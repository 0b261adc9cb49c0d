package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"kvferry/core/security"
	"kvferry/tcp/sockio"
)

// A session under TLS lives as long as its peer would be accepted:
//
//  1. recheck looks at the sessions every security.RecheckInterval. It asks again who the peer of a session is when a secret or
//     certificate of this engine has changed, or the peer's certificate has expired.
//  2. A session whose peer would be refused now, or whose keys are worn, ends when it waits for its next request, and after
//     endGrace in any case. A kvferry engine connects again. It sends again what had no answer, so that no transfer fails if it is
//     accepted.

// endGrace is how long a session that is to end may go on with its requests. An initiator replaces its connections by itself when
// its own secret changes and when their keys are worn, and needs less time for that.
const endGrace = 5 * time.Second

// errNotAccepted is in the reason why a session ends whose peer would be refused by now.
var errNotAccepted = errors.New("it has begun by a secret or a certificate that is not accepted any more")

// errWorn is why a session ends that has carried as many records as its keys are good for.
var errWorn = fmt.Errorf("it has carried %d records, and its keys are not good for many more", sockio.MaxRecords)

// proven is what a session under TLS knows of its peer. Only recheck changes it.
type proven struct {
	conn  *tls.Conn // nil without TLS
	peer  security.Peer
	since time.Time // when recheck found that the session is to end; zero before
	cause error
}

// keepRechecking calls recheck until the server is closed.
func (v *Server) keepRechecking() {
	ticker := time.NewTicker(security.RecheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-v.closing:
			return
		case now := <-ticker.C:
			v.recheck(now)
		}
	}
}

// recheck ends the sessions that are not to go on.
func (v *Server) recheck(now time.Time) {
	v.options.Security.Generation() // has changed files read
	v.mu.Lock()
	var all []*session
	for s := range v.sessions {
		if s.proven.conn != nil {
			all = append(all, s)
		}
	}
	v.mu.Unlock()
	for _, s := range all {
		p := &s.proven
		if p.cause == nil {
			if p.cause = v.unwanted(s); p.cause == nil {
				continue
			}
			p.since = now
		}
		if _, rests := s.idleSince(now, 0); rests || now.Sub(p.since) >= endGrace {
			s.end(p.cause)
		}
	}
}

// unwanted is why a session is not to go on, or nil.
func (v *Server) unwanted(s *session) error {
	p := &s.proven
	if s.conn.Worn() {
		return errWorn
	}
	if v.options.Security.IsCurrent(p.peer) {
		return nil
	}
	peer, err := v.options.Security.Recheck(p.conn.ConnectionState())
	if err != nil {
		return fmt.Errorf("%w: %w", errNotAccepted, err)
	}
	p.peer = peer
	return nil
}
