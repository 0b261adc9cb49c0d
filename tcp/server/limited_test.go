package server

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// uploads are connections in the middle of a WRITE with a long payload each.
type uploads struct {
	*harness
	memory, payload []byte
	clients         []*tcptest.Client
	sent            int // of each payload
}

const uploadLength, uploadPart, uploadProcessors = 1 << 20, 4 << 10, 2

func newUploads(t *testing.T, count int) *uploads {
	memory := tcptest.Mapped(t, count*uploadLength)
	options := Options{Processors: sockio.NewProcessors(uploadProcessors), Limiter: samehost.NewCopyLimiter(1, nil)}
	u := &uploads{harness: serve(t, options, memory), memory: memory, payload: tcptest.Pattern(uploadLength, 1)}
	for i := range count {
		c := u.dial()
		c.Send(tcptest.Request(core.Write, true, hostmem.AddressOf(memory[i*uploadLength:]), uploadLength))
		u.clients = append(u.clients, c)
	}
	require.Eventually(t, func() bool { return u.server.long.Load() == int64(count) }, tcptest.Patience, time.Millisecond)
	return u
}

// part sends some more of each payload, while short transfers are expected.
func (u *uploads) part(length int) {
	u.server.options.Limiter.Note(1)
	for _, c := range u.clients {
		c.Send(u.payload[u.sent : u.sent+length])
	}
	u.sent += length
}

// end sends the rest, and compares.
func (u *uploads) end() {
	u.part(uploadLength - u.sent)
	for i, c := range u.clients {
		c.ExpectStatus(wire.StatusOK)
		require.True(u.t, bytes.Equal(u.payload, u.memory[i*uploadLength:][:uploadLength]))
	}
	require.Eventually(u.t, func() bool { return u.server.long.Load() == 0 }, tcptest.Patience, time.Millisecond)
}

func TestSessionsInACrowdReceiveLongPayloadsInTurns(t *testing.T) {
	u := newUploads(t, crowd*uploadProcessors)
	for u.sent < uploadLength/2 && u.server.options.Limiter.Released() == 0 {
		u.part(uploadPart)
	}
	u.end()
	require.Positive(t, u.server.options.Limiter.Released())
}

func TestTheLanesOfOnePeerDoNotWaitForEachOther(t *testing.T) {
	u := newUploads(t, crowd*uploadProcessors-1)
	for u.sent < uploadLength/2 {
		u.part(uploadPart)
	}
	u.end()
	require.Zero(t, u.server.options.Limiter.Released())
}

// requireSlowness has the server measure since a time how fast the sessions are, and check them: it goes on measuring.
func (u *uploads) requireSlowness(since time.Time) {
	u.each(func(s *session) { s.slowSince = since })
	u.server.check()
	u.each(func(s *session) { require.Equal(u.t, since, s.slowSince) })
}

func (u *uploads) each(do func(s *session)) {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	for s := range u.server.sessions {
		do(s)
	}
}

// soon reports whether something is true after other goroutines have had some turns.
func soon(is func() bool) bool {
	for range 1000 {
		if is() {
			return true
		}
		runtime.Gosched()
	}
	return false
}

func TestASessionThatWaitsForAPlaceDoesNotWaitForItsPeer(t *testing.T) {
	u := newUploads(t, crowd*uploadProcessors)
	waits := func(peer bool) func() bool {
		return func() bool {
			all := true
			u.each(func(s *session) { all = all && s.waiting.Load() == peer })
			return all
		}
	}
	require.Eventually(t, waits(true), tcptest.Patience, time.Millisecond)
	limiter := u.server.options.Limiter
	hold := func() {
		for !limiter.Acquire() {
			limiter.Note(1)
		}
	}
	hold()
	for u.part(uploadPart); u.sent < uploadLength/2 && !soon(waits(false)); u.part(uploadPart) {
		limiter.Release() // perhaps they have given up to wait for the place
		hold()
	}
	require.Less(t, u.sent, uploadLength/2, "each waits for the place, although there are bytes")
	u.requireSlowness(time.Now())
	limiter.Release()
	require.Eventually(t, waits(true), tcptest.Patience, time.Millisecond, "each waits for its peer again")
	u.end()
}

// newDownloads are connections that have asked for a long payload each, more of it than their buffers have room for.
func newDownloads(t *testing.T, count int) *uploads {
	memory := tcptest.Mapped(t, downloadLength)
	options := Options{Processors: sockio.NewProcessors(uploadProcessors), Limiter: samehost.NewCopyLimiter(1, nil)}
	u := &uploads{harness: serve(t, options, memory), memory: memory}
	tcptest.Fill(memory, 1)
	for range count {
		c := u.dial()
		c.Send(tcptest.Request(core.Read, true, hostmem.AddressOf(memory), downloadLength))
		c.ExpectStatus(wire.StatusOK)
		u.clients = append(u.clients, c)
	}
	require.EqualValues(t, count, u.server.long.Load())
	return u
}

const downloadLength = 64 << 20

// take takes parts of each payload, while short transfers are expected, until a session has moved bytes with a place.
func (u *uploads) take() {
	for at := 0; at < downloadLength/2 && u.server.options.Limiter.Released() == 0; at += uploadLength {
		for _, c := range u.clients {
			u.server.options.Limiter.Note(1)
			c.Expect(u.memory[at:][:uploadLength])
		}
	}
}

func TestSessionsInACrowdSendLongPayloadsInTurns(t *testing.T) {
	u := newDownloads(t, crowd*uploadProcessors)
	u.take()
	require.Positive(t, u.server.options.Limiter.Released())
}

func TestTheLanesOfOnePeerSendWithoutWaitingForEachOther(t *testing.T) {
	u := newDownloads(t, crowd*uploadProcessors-1)
	u.take()
	require.Zero(t, u.server.options.Limiter.Released())
}
