package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"kvferry/core/clock"
	"kvferry/core/fair"
	"kvferry/tcp/sockio"

	"go.uber.org/zap"
)

// Which sessions there are when they are as many as may be. The addresses of peers share the places (core/fair). Each session has
// a rank, which says how readily it gives way to a newcomer:
//
//  1. A new session is silent, and goes first. prove ends that, with the first valid request or the hello of a kvferry engine.
//     A session that stays silent ends soon in any case (watch.go).
//  2. Otherwise a session is busy, and does not give way. It notes since when it waits for the next request (rest, resume).
//  3. Where a newcomer finds no place, offerIdle lets the sessions give way that have been waiting for their next request for a
//     while. A kvferry engine connects again when it needs to. Mooncake's initiators fail the transfer that finds its connection
//     closed, so theirs go last.
//  4. All engines of the process share its descriptors. Where these are used up, the engine with the most sessions lets one give way
//     (GiveWay), and the connection waits.
//  5. A session that gives way ends between two requests. A peer that speaks version 2 sees an orderly end.
const (
	// greetedTime is how long a kvferry engine may take from its hello to its first request, before its session gives way.
	// So each connection carries a request at least, and engines that push each other out all get on.
	greetedTime = time.Second
	// offerPause is between two searches for idle sessions.
	offerPause = 20 * time.Millisecond
	// urgentTime is how long a connection waits before sessions give way to it that have only just become idle.
	urgentTime = time.Second
	// silentTime is how long a silent session is safe from newcomers of its own address. So peers of one address that connect all
	// at once do not push each other out.
	silentTime = 100 * time.Millisecond
	// insistFrom is how many connections wait when further ones do not wait for silent sessions of their own address any more.
	insistFrom = maxWaiting / 2
)

// errGaveWay ends a session that has given way.
var errGaveWay = errors.New("it gave way to another connection")

// errNoDescriptors is why there is no session although there may be more of them.
var errNoDescriptors = errors.New("the engines of the process have no descriptors left for data connections: raise RLIMIT_NOFILE")

// place is what a session takes of the server's limits.
type place struct {
	*fair.Place
	session atomic.Pointer[session] // nil before it starts

	entering context.Context // ends with the place, or with the server; see enter
	leave    context.CancelCauseFunc
}

// newPlace is a place that is not taken yet.
func (v *Server) newPlace() *place {
	p := &place{}
	p.entering, p.leave = context.WithCancelCause(v.ctx)
	return p
}

// giveWay is called once, when another session gets the place.
func (p *place) giveWay() {
	p.leave(errGaveWay) // ends the handshake of a connection that has no session yet
	if s := p.session.Load(); s != nil {
		s.end(errGaveWay)
		s.server.warnFull(fmt.Errorf("a silent or idle connection of %s gave way", s.peer))
	}
}

// newGate shares the places. One address may have three quarters of them: peers may be many processes of a host, or many hosts
// behind one address.
func newGate(o Options) (gate *fair.Gate, limit int) {
	limit = o.MaxSessions
	if o.Descriptors != nil {
		limit = min(limit, o.Descriptors.Connections())
	}
	return fair.New(fair.Options{Limit: int64(limit), Share: int64(limit - limit/4), Grace: silentTime}), limit
}

// seat takes a place for a connection, and starts its session. Where the error says why there is no place, the connection is as
// before. With insist, also a new silent session of its address gives way.
func (v *Server) seat(conn sockio.Conn, insist bool) error {
	p := v.newPlace()
	var err error
	enter := v.gate.Enter
	if insist {
		enter = v.gate.Insist
	}
	if p.Place, err = enter(fair.AddrOf(conn.RemoteAddr()), 1, p.giveWay); err != nil {
		p.leave(err)
		return err
	}
	if !v.options.Descriptors.Take(sockio.PerConnection) { // perhaps those of a session that gave way are not free yet
		p.leave(errNoDescriptors)
		p.Leave()
		v.options.Descriptors.MakeRoom()
		return errNoDescriptors
	}
	v.seated.Add(1)
	v.start(conn, p)
	return nil
}

// vacate gives a place back.
func (v *Server) vacate(p *place) {
	p.leave(nil)
	p.Leave()
	v.options.Descriptors.Give(sockio.PerConnection)
	v.seated.Add(-1)
	v.notePlaceFree()
}

// Connections is the number of sessions. Those that have given way are about to end.
func (v *Server) Connections() (all, ending int) {
	all = int(v.seated.Load())
	return all, all - int(v.gate.Held())
}

// GiveWay has a silent or an idle session give way to a connection with another engine of the process.
func (v *Server) GiveWay() bool {
	v.offerIdle(v.options.Idle)
	return v.gate.GiveWay()
}

// notePlaceFree has the connections that wait try again.
func (v *Server) notePlaceFree() {
	if !v.someWait.Load() {
		return
	}
	select {
	case v.placeFree <- struct{}{}:
	default: // it was noted already
	}
}

// offerIdle lets sessions give way that have been idle for so long, those that have been so for longest before others.
func (v *Server) offerIdle(after time.Duration) {
	type idle struct {
		*session
		since time.Time
	}
	now := time.Now()
	var all []idle
	v.mu.Lock()
	for s := range v.sessions {
		if since, ok := s.idleSince(now, after); ok {
			all = append(all, idle{s, since})
		}
	}
	v.mu.Unlock()
	slices.SortFunc(all, func(a, b idle) int { return a.since.Compare(b.since) })
	for _, s := range all {
		s.offer(s.since)
	}
}

// warnFull logs that connections have to wait or give way, once in a while.
func (v *Server) warnFull(full error) {
	const pause = int64(time.Minute)
	now, last := int64(clock.SinceBoot()), v.warned.Load()
	if last != 0 && now-last < pause || !v.warned.CompareAndSwap(last, now) {
		return
	}
	v.log.Warn("all sessions are in use; more data connections wait until one ends", zap.Int("limit", v.limit),
		zap.Int("KVFERRY_MAX_SESSIONS", v.options.MaxSessions), zap.Error(full))
}

// prove notes that the peer has sent something valid. The session is busy from then on.
func (s *session) prove() error {
	if !s.silent.Load() {
		return nil
	}
	s.silent.Store(false)
	if !s.place.SetRank(fair.Busy) {
		return errGaveWay
	}
	s.readInto(make([]byte, readAhead))
	return nil
}

// rest notes that the session is about to wait for the next request.
func (s *session) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resting = time.Now()
}

// resume notes that the session has received something. It fails when the session has given way.
func (s *session) resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resting = time.Time{}
	if s.offered && !s.place.SetRank(fair.Busy) {
		return errGaveWay
	}
	s.offered = false
	return nil
}

// idleSince reports since when the session has been waiting for the next request, if that is long enough.
func (s *session) idleSince(now time.Time, after time.Duration) (since time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resting.IsZero() || s.staged != nil && len(s.staged.queue) > 0 {
		return s.resting, false
	}
	if !s.asked {
		after = max(after, greetedTime)
	}
	return s.resting, now.Sub(s.resting) >= after
}

// offer lets the session give way, if it has been waiting since then.
func (s *session) offer(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.offered || !s.resting.Equal(since) {
		return
	}
	s.offered = true
	rank := fair.Spared
	if s.greeted {
		rank = fair.Idle
	}
	s.place.SetRank(rank)
}
