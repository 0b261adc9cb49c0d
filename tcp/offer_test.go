package tcp

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// offered are two caches, of which the far one is offered and closed to other requests.
type offered struct {
	*twoCaches
	offer *core.Offer
}

// newOffered offers some blocks of the far cache.
func newOffered(t testing.TB, run uint64, blocks []uint64, o core.OfferOptions, change ...func(*core.Config)) *offered {
	c := newCaches(t, run, change...)
	require.NoError(t, c.target.Unregister(hostmem.AddressOf(c.far.memory)))
	require.NoError(t, c.target.Register(hostmem.AddressOf(c.far.memory), uint64(len(c.far.memory)), "cpu:0", false))
	return &offered{c, c.offerAgain(t, blocks, o)}
}

func (c *twoCaches) offerAgain(t testing.TB, blocks []uint64, o core.OfferOptions) *core.Offer {
	place := c.far.Place
	place.Blocks = blocks
	offer, err := c.target.Offer(place, o)
	require.NoError(t, err)
	return offer
}

// planned is the transfer of blocks by the text of an offer, and the memory of its destination as it should be afterwards.
func (c *twoCaches) planned(t testing.TB, op core.Opcode, text []byte, blocks []uint64) (*layout.Transfer, []byte) {
	there, err := layout.ParseOffer(text)
	require.NoError(t, err)
	require.Equal(t, c.target.Name(), there.Engine)
	there.Blocks = blocks
	source, destination := cache{there.Place, c.far.memory, nil}, *c.near
	destination.Blocks = blocks
	if op == core.Write {
		source, destination = destination, source
	}
	request := layout.Request{Sources: []layout.Place{source.Place}, Destinations: []layout.Place{destination.Place}, Tokens: 16 * uint64(len(blocks)), Partial: true}
	plan, err := request.NewPlan()
	require.NoError(t, err)
	return plan.Transfers[0], apply(plan.Transfers[0], &source, &destination)
}

var both = core.OfferOptions{Access: core.FullAccess}

func TestWhatIsOfferedMovesByItsKeyAlone(t *testing.T) {
	for _, sameHost := range []bool{false, true} {
		for _, run := range []uint64{64, 8 << 10} {
			blocks := []uint64{0, 1}
			c := newOffered(t, run, blocks, both, func(config *core.Config) { config.SameHost = sameHost })
			for _, op := range tcptest.Opcodes {
				transfer, want := c.planned(t, op, c.offer.Text(), blocks)
				tcptest.Completes(t, c.submit(t, op, transfer))
				require.True(t, bytes.Equal(want, c.destination(op)))

				plain, _ := c.plan(t, op, blocks)
				b := c.submit(t, op, plain)
				tcptest.Wait(t, b)
				require.ErrorContains(t, b.Err(), "rejected")
			}
			require.NoError(t, c.offer.Revoke())
		}
	}
}

// fails submits the transfer of blocks by an offer, which fails, and touches nothing.
func (c *offered) fails(t testing.TB, op core.Opcode, blocks []uint64, want error) {
	before := slices.Clone(c.destination(op))
	transfer, _ := c.planned(t, op, c.offer.Text(), blocks)
	b := c.submit(t, op, transfer)
	tcptest.Wait(t, b)
	require.ErrorContains(t, b.Err(), want.Error())
	require.True(t, bytes.Equal(before, c.destination(op)))
}

func TestAnOfferIsForItsBlocksItsDirectionAndItsTime(t *testing.T) {
	blocks := []uint64{2, 3, 5}
	c := newOffered(t, 64, blocks, core.OfferOptions{Access: core.RemoteRead})
	c.fails(t, core.Read, []uint64{4}, core.ErrNotOffered)
	c.fails(t, core.Write, blocks, core.ErrNotOffered)
	transfer, _ := c.planned(t, core.Read, c.offer.Text(), blocks)
	tcptest.Completes(t, c.submit(t, core.Read, transfer))
	require.NoError(t, c.offer.Revoke())
	require.NoError(t, c.offer.Revoke(), "again")
	c.fails(t, core.Read, blocks, core.ErrRevoked)

	c.offer = c.offerAgain(t, blocks, core.OfferOptions{Access: core.RemoteRead, For: time.Nanosecond})
	c.fails(t, core.Read, blocks, core.ErrRevoked)

	c.offer = c.offerAgain(t, blocks, core.OfferOptions{Access: core.FullAccess, Once: true})
	transfer, _ = c.planned(t, core.Read, c.offer.Text(), blocks)
	tcptest.Completes(t, c.submit(t, core.Read, transfer))
	c.fails(t, core.Read, blocks, core.ErrOfferUsed)
	c.fails(t, core.Write, blocks, core.ErrOfferUsed)
}

func TestAnOfferOnceSurvivesLostConnections(t *testing.T) {
	c := newOffered(t, 64, newCaches(t, 64).allBlocks(), core.OfferOptions{Access: core.FullAccess, Once: true},
		func(config *core.Config) { config.RetryCount = 127 })
	defer killSome(transportOf(t, c.target), transportOf(t, c.e))()
	transfer, want := c.planned(t, core.Write, c.offer.Text(), c.allBlocks())
	tcptest.Completes(t, c.submit(t, core.Write, transfer))
	require.True(t, bytes.Equal(want, c.far.memory))
}

func TestAnOfferWithinAProcess(t *testing.T) {
	c := newOffered(t, 64, []uint64{1, 2}, both)
	transfer, want := c.planned(t, core.Write, c.offer.Text(), []uint64{1, 2})
	own := core.Planned{Opcode: core.Write, Target: core.LocalSegment, Transfer: transfer}
	b, err := c.target.SubmitPlanned(own, 0)
	require.NoError(t, err)
	tcptest.Completes(t, b)
	require.True(t, bytes.Equal(want, c.far.memory))
	require.NoError(t, c.offer.Revoke())
	b, err = c.target.SubmitPlanned(own, 0)
	require.NoError(t, err)
	tcptest.Wait(t, b)
	require.ErrorIs(t, b.Err(), core.ErrRevoked)
}

// TestNothingMovesByARevokedOffer revokes offers while transfers use them, as an engine does that gives the blocks to another
// request.
func TestNothingMovesByARevokedOffer(t *testing.T) {
	for _, sameHost := range []bool{false, true} {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 1))
		c := newOffered(t, 64, []uint64{0}, both, func(config *core.Config) { config.SameHost = sameHost })
		for round := range 60 {
			blocks := slices.Clone(c.allBlocks())
			random.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
			blocks = blocks[:1+random.IntN(len(blocks))]
			offer := c.offerAgain(t, blocks, both)
			transfer, _ := c.planned(t, core.Write, offer.Text(), blocks)
			b := c.submit(t, core.Write, transfer)
			if random.IntN(4) > 0 {
				waitForBytes(t, b)
			}
			require.NoError(t, offer.Revoke())
			tcptest.Fill(c.far.memory, byte(round)) // the blocks are another request's
			mine := slices.Clone(c.far.memory)
			tcptest.Wait(t, b)
			if err := b.Err(); err != nil {
				require.ErrorContains(t, err, core.ErrRevoked.Error())
			}
			require.True(t, bytes.Equal(mine, c.far.memory), "round %d", round)
			require.NoError(t, c.e.FreeBatch(b))
		}
	}
}

// dialTo connects to the data port of an engine.
func dialTo(t testing.TB, e *core.Engine) *tcptest.Client {
	conn, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: transportOf(t, e).Endpoint().Port})
	require.NoError(t, err)
	return tcptest.NewClient(t, conn)
}

// raw is a connection of a peer that sends requests by the offer, and what is offered.
func (c *offered) raw(t testing.TB) (conn *tcptest.Client, key wire.Key, memory []byte) {
	conn = dialTo(t, c.target)
	require.EqualValues(t, wire.StatusOK, conn.Greet(wire.Hello{Number: 1, Target: wire.ParseIdentity(c.target.Identity())}).Code)
	there, err := layout.ParseOffer(c.offer.Text())
	require.NoError(t, err)
	ranges, err := there.Place.Ranges()
	require.NoError(t, err)
	at := ranges[0].Address - uint64(hostmem.AddressOf(c.far.memory))
	return conn, wire.Key(there.Key), c.far.memory[at:][:ranges[0].Bytes]
}

// byKey is a strided request with a key, without payload.
func byKey(op wire.Opcode, key wire.Key, memory []byte, run uint64, axes ...wire.Axis) []byte {
	body, length := wire.Strided{Key: key, Run: run}, run
	for i, a := range axes {
		body.Axes[i] = a
		length *= a.Count
	}
	frame := make([]byte, wire.HeaderSize+wire.StridedBody(len(axes)))
	wire.PutStrided(frame, op, uint64(hostmem.AddressOf(memory)), length, &body, len(axes))
	return frame
}

func TestRevokeDoesNotWaitForThePayloadOfARequest(t *testing.T) {
	for _, axes := range [][]wire.Axis{nil, {{Count: 10, Stride: 16}}} {
		c := newOffered(t, 64, []uint64{1}, both)
		conn, key, memory := c.raw(t)
		run, last := uint64(100), 50
		if axes != nil {
			run, last = 10, 5*16
		}
		conn.Send(byKey(wire.Write, key, memory, run, axes...), make([]byte, 60))
		require.Eventually(t, func() bool { return bytes.Equal(make([]byte, 10), memory[last:][:10]) }, tcptest.Patience, time.Millisecond)
		require.NoError(t, c.offer.Revoke())
		mine := tcptest.Pattern(len(memory), 9)
		copy(memory, mine)
		conn.Send(make([]byte, 40))
		conn.ExpectStatus(wire.StatusRevoked) // on the same connection
		require.True(t, bytes.Equal(mine, memory))
	}
}

// ask sends more READs than the target can answer while nobody takes the answers, and waits until the target cannot send more.
func (c *offered) ask(t testing.TB, conn *tcptest.Client, frame []byte, length uint64) (requests int) {
	requests = int((16<<20)/length) + 1
	for range requests {
		conn.Send(frame)
	}
	full := 0
	require.Eventually(t, func() bool {
		if full++; c.targetHasRoomToSend(t) {
			full = 0
		}
		return full > 50
	}, tcptest.Patience, time.Millisecond)
	return requests
}

// targetHasRoomToSend reports whether the kernel takes more bytes for the one connection to the target. That depends on the peer
// alone: a target that gets no processor for a while has room.
func (c *offered) targetHasRoomToSend(t testing.TB) bool {
	for _, one := range tcptest.SocketsOf(transportOf(t, c.target).Endpoint().Port) {
		if one.Accepted {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(one.File), Events: unix.POLLOUT}}, 0)
			return n != 0 || err != nil
		}
	}
	return true
}

func TestRevokeDoesNotWaitForAPeerThatTakesNoAnswersOfShortRuns(t *testing.T) {
	c := newOffered(t, 64, []uint64{0, 1, 2, 3}, both)
	conn, key, memory := c.raw(t)
	want := slices.Clone(memory)
	run := uint64(len(memory)) / 4
	requests := c.ask(t, conn, byKey(wire.Read, key, memory, run, wire.Axis{Count: 2, Stride: int64(2 * run)}), 2*run)
	require.NoError(t, c.offer.Revoke())
	for range requests {
		status := make([]byte, wire.StatusSize)
		_, err := io.ReadFull(conn.Conn, status)
		require.NoError(t, err)
		code, err := wire.ParseStatus(status)
		require.NoError(t, err)
		if code == wire.StatusRevoked {
			conn.ExpectEnd()
			return
		}
		require.EqualValues(t, wire.StatusOK, code)
		conn.Expect(want[:run])
		conn.Expect(want[2*run : 3*run])
	}
	require.Fail(t, "all requests were served")
}

func TestRevokeEndsTheRequestsOfAPeerThatHasStopped(t *testing.T) {
	c := newOffered(t, 64, []uint64{0, 1, 2, 3}, both)
	conn, key, memory := c.raw(t)
	c.ask(t, conn, byKey(wire.Read, key, memory, uint64(len(memory))), uint64(len(memory)))
	require.NoError(t, c.offer.Revoke())
	_, err := io.Copy(io.Discard, conn.Conn)
	require.ErrorIs(t, err, unix.ECONNRESET)
	require.NoError(t, c.target.Unregister(hostmem.AddressOf(c.far.memory)))
}

func TestAnOfferEndsWithARegionThatItLiesIn(t *testing.T) {
	blocks := []uint64{1, 2}
	c := newOffered(t, 64, blocks, both)
	other := tcptest.Mapped(t, 100) // no memory of the offer
	require.NoError(t, c.target.Register(hostmem.AddressOf(other), 100, "cpu:0", true))
	require.NoError(t, c.target.Unregister(hostmem.AddressOf(other)))
	transfer, _ := c.planned(t, core.Read, c.offer.Text(), blocks)
	tcptest.Completes(t, c.submit(t, core.Read, transfer))

	// What is registered at the same address from now on is another owner's.
	require.NoError(t, c.target.Unregister(hostmem.AddressOf(c.far.memory)))
	require.NoError(t, c.target.Register(hostmem.AddressOf(c.far.memory), uint64(len(c.far.memory)), "cpu:0", false))
	c.fails(t, core.Read, blocks, core.ErrRevoked)
	c.fails(t, core.Write, blocks, core.ErrRevoked)
	require.NoError(t, c.offer.Revoke())
}

func TestAnOfferIsNoMemoryOfThisProcess(t *testing.T) {
	blocks := []uint64{1, 2}
	c := newOffered(t, 64, blocks, both)
	for _, op := range tcptest.Opcodes {
		wrong := core.Read
		if op == core.Read {
			wrong = core.Write
		}
		transfer, _ := c.planned(t, op, c.offer.Text(), blocks)
		for _, limit := range []int{0, 1} {
			_, err := c.e.SubmitPlanned(core.Planned{Opcode: wrong, Target: c.id, Transfer: transfer}, limit)
			require.ErrorContains(t, err, "offer in its place")
		}
	}
}

func TestAnOfferOfAnotherProcessIsNotOfferedAgain(t *testing.T) {
	c := newOffered(t, 64, []uint64{1}, both)
	there, err := layout.ParseOffer(c.offer.Text())
	require.NoError(t, err)
	_, err = c.e.Offer(there.Place, both)
	require.ErrorContains(t, err, "an offer of another process")
}

func TestAnOfferHasATextThatItsReceiverCanRead(t *testing.T) {
	c := newOffered(t, 64, []uint64{1}, both)
	place := c.far.Place
	place.Blocks = make([]uint64, layout.MaxOfferText/2) // positions before the first one that is offered
	place.First = uint64(len(place.Blocks)-1) * place.Layout.BlockTokens
	_, err := c.target.Offer(place, both)
	require.ErrorContains(t, err, "text of the offer")
}
