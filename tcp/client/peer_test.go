package client

import (
	"testing"
	"time"

	"kvferry/core"
	"kvferry/tcp/sockio"

	"github.com/stretchr/testify/require"
)

// burdened is a carrier that holds so many bytes, and counts who assists it.
type loaded struct {
	pipelined
	bytes    uint64
	assisted int
}

func (b *loaded) load() uint64 { return b.bytes }
func (b *loaded) assist()      { b.assisted++ }

func (b *loaded) mayBeAssisted() bool { return true }
func (b *loaded) setSpinning(bool)    {}
func (b *loaded) expect() func()      { return endNothing }

func (b *loaded) assistAsleep(time.Duration, func() bool) bool { return false }

func TestAWaitForAShortAnswerIsNotHeldUpByLongOnes(t *testing.T) {
	long, short, none := &loaded{bytes: busyBytes + 1}, &loaded{bytes: busyBytes}, &loaded{}
	var p peer
	p.carriers.Store(newCarriers([]carrier{long, none, short}))
	for short.assisted <= 2 { // on a busy machine one look may be too short
		p.assist(func() bool { return short.assisted > 2 })
	}
	require.Zero(t, long.assisted)
	require.Zero(t, none.assisted)
	require.Equal(t, 3, short.assisted)
}

func TestShortWorksAreLeftToTheLaneReservedForThem(t *testing.T) {
	reserved, other := &loaded{}, &loaded{}
	p := &peer{reserved: time.Now().Add(time.Hour)}
	p.carriers.Store(newCarriers([]carrier{reserved, other}))
	short := newCursor(workOf(write(0x1000, 0x10000, shortWork)))
	long := newCursor(workOf(write(0x1000, 0x10000, shortWork+1)))
	takes := func(c carrier) [2]bool { return [2]bool{p.mayTakeFrom(c)(short), p.mayTakeFrom(c)(long)} }

	require.Equal(t, [2]bool{true, false}, takes(reserved))
	require.Equal(t, [2]bool{false, true}, takes(other))
	reserved.bytes = busyBytes + 1
	require.Equal(t, [2]bool{true, true}, takes(other), "what is reserved is busy itself")
	p.reserved = time.Time{}
	require.Equal(t, [2]bool{true, true}, takes(other), "none is reserved")
}

func TestThereAreFewerLanesOverALink(t *testing.T) {
	config := core.Config{LanesPerPeer: 4, LanesPerLink: 2}
	p := newPeer(&Client{Options: Options{Config: &config, Processors: testProcessors}}, &core.Segment{})
	require.Equal(t, 2, p.mostCarriers(true), "before anything is known")
	require.Equal(t, 4, p.mostCarriers(false))
	p.distance = far
	require.Equal(t, 2, p.mostCarriers(true))
	p.reserved = time.Now().Add(time.Hour)
	require.Equal(t, 3, p.mostCarriers(true), "one more for short works")
	p.distance = near
	require.Equal(t, 4, p.mostCarriers(true))
	config.LanesPerPeer, p.distance = 1, far
	require.Equal(t, 1, p.mostCarriers(true))
}

func TestAPeerIsAsFarAsItsLastLane(t *testing.T) {
	p := &peer{distance: near}
	p.connected(distanceOf(farAway, false), false)
	require.Equal(t, far, p.distance)
	p.connected(distanceOf(farAway-1, false), false)
	require.Equal(t, near, p.distance)
	p.connected(distanceOf(farAway, true), false)
	require.Equal(t, onHost, p.distance)
}

func TestTheSameBytesAreWorthMoreLanesWhereProcessorsAbound(t *testing.T) {
	many := sockio.NewProcessors(16)
	many.Contention = nil // that of this machine does not count
	config := &core.Config{LanesPerPeer: 8}
	p := newPeer(&Client{Options: Options{Config: config, Processors: many}}, &core.Segment{})
	require.EqualValues(t, 4, p.worth(4<<20), "no lane is connected yet")
	p.distance = near
	require.EqualValues(t, 8, p.worth(4<<20))
	p.distance = far
	require.EqualValues(t, 4, p.worth(4<<20), "the link is what they would share")
	p.distance = onHost
	require.EqualValues(t, 4, p.worth(4<<20), "one processor copies faster than a connection carries")
	p.distance = near
	config.LanesPerPeer = 1
	require.EqualValues(t, 4, p.worth(4<<20), "there is one lane only")
	config.LanesPerPeer, p.client.Processors = 8, sockio.NewProcessors(2)
	require.EqualValues(t, 4, p.worth(4<<20))
}

func TestEncryptedBytesAreWorthMoreLanes(t *testing.T) {
	p := newPeer(&Client{Options: Options{Config: &core.Config{}, Processors: testProcessors}}, &core.Segment{})
	p.distance = near
	require.EqualValues(t, 4, p.worth(4<<20))
	p.connected(near, true)
	require.EqualValues(t, 8, p.worth(4<<20))
	p.connected(near, false)
	require.EqualValues(t, 4, p.worth(4<<20), "over another connection")
}
