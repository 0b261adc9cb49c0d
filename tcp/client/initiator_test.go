package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/shut"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// misbehaviours are what a connection may come to after it was accepted.
var misbehaviours = []struct {
	name string
	play func(v *tcptest.Visitor)
}{
	{"closed at once", func(*tcptest.Visitor) {}},
	{"reset at once", (*tcptest.Visitor).Reset},
	{"closed in the middle of a header", func(v *tcptest.Visitor) { v.Skip(wire.HeaderSize / 2) }},
	{"closed in the middle of a payload", func(v *tcptest.Visitor) {
		var h wire.Header
		switch {
		case !v.Header(&h):
		case h.Op == wire.Write:
			v.Skip(int64(h.Length / 2))
		default:
			_ = v.Status(wire.StatusOK) && v.Send(make([]byte, h.Length/2))
		}
	}},
	{"reset in the middle of a payload", func(v *tcptest.Visitor) {
		var h wire.Header
		if v.Header(&h) && h.Op == wire.Read {
			_ = v.Status(wire.StatusOK) && v.Send(make([]byte, h.Length/2))
		}
		v.Reset()
	}},
	{"closed in the middle of a status", func(v *tcptest.Visitor) {
		var h wire.Header
		if v.Header(&h) && (h.Op == wire.Read || v.Skip(int64(h.Length))) {
			v.Send([]byte{0, 0, 0, 0, 'V'})
		}
	}},
	{"a status with a bad magic number", func(v *tcptest.Visitor) {
		v.Send([]byte{0, 0, 0, 0, 'A', 'B', 'C', 'D'})
		v.WaitForEnd()
	}},
	{"garbage", func(v *tcptest.Visitor) {
		for v.Send(tcptest.Pattern(5000, 3)) {
		}
	}},
}

func TestWhatABrokenConnectionLeftUnacknowledgedIsSentAgain(t *testing.T) {
	for _, way := range tcptest.Ways[:2] {
		for _, m := range misbehaviours {
			for _, op := range tcptest.Opcodes {
				t.Run(way.Name+"/"+m.name+"/"+op.String(), func(t *testing.T) {
					const blocks, size = 20, 5000
					near, far := tcptest.Mapped(t, 1<<17), tcptest.Mapped(t, 1<<17)
					p := tcptest.Perform(t, 2, tcptest.AtFirst(2, func(v *tcptest.Visitor, _ int) { m.play(v) }), far)
					e := newEngine(t, way.Config)
					reqs := tcptest.Scattered(op, near, tcptest.OpenSegment(t, e, p.Name), far, blocks, size)
					tcptest.Fill(near, 1)
					tcptest.Fill(far, 2)
					tcptest.Completes(t, tcptest.Submit(t, e, reqs...))
					for _, r := range reqs {
						require.Equal(t, hostmem.At(r.Local, size), hostmem.At(uintptr(r.Remote), size))
					}
				})
			}
		}
	}
}

func TestAPeerThatIsNoUseFailsItsTransfersWithTheReasonAndNobodyElses(t *testing.T) {
	for _, way := range tcptest.Ways[:2] {
		for _, m := range misbehaviours {
			for _, op := range tcptest.Opcodes {
				t.Run(way.Name+"/"+m.name+"/"+op.String(), func(t *testing.T) {
					const blocks, size = 20, 5000
					near, far, good := tcptest.Mapped(t, 1<<17), tcptest.Mapped(t, 1<<17), tcptest.Mapped(t, 1<<17)
					p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) { m.play(v) }, far)
					q := tcptest.Perform(t, 2, tcptest.ServeWell, good)
					e := newEngine(t, way.Config, tcptest.FewRetries)
					toBad := tcptest.Submit(t, e, tcptest.Scattered(op, near, tcptest.OpenSegment(t, e, p.Name), far, blocks, size)...)
					toGood := tcptest.Submit(t, e, tcptest.Scattered(op, near, tcptest.OpenSegment(t, e, q.Name), good, blocks, size)...)
					tcptest.Completes(t, toGood)
					tcptest.Wait(t, toBad)
					require.EqualValues(t, blocks, toBad.Summary().Failed)
					require.ErrorContains(t, toBad.Err(), p.Name)
					require.ErrorContains(t, toBad.Err(), op.String()+" of 5000 bytes at 0x")
					require.LessOrEqual(t, p.Connections(), blocks*3)
				})
			}
		}
	}
}

func TestAV1PeerThatBreaksOffFailsOrIsAskedAgain(t *testing.T) {
	const blocks, size = 12, 5000
	for _, m := range misbehaviours[:5] {
		for _, op := range tcptest.Opcodes {
			if op == core.Read && m.name == "closed in the middle of a payload" {
				continue // the status that it sends is payload in version 1, and then it is no short one
			}
			t.Run(m.name+"/"+op.String(), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 1<<17), tcptest.Mapped(t, 1<<17)
				p := tcptest.Perform(t, 1, tcptest.AtFirst(3, func(v *tcptest.Visitor, _ int) { m.play(v) }), far)
				e := newEngine(t)
				reqs := tcptest.Scattered(op, near, tcptest.OpenSegment(t, e, p.Name), far, blocks, size)
				tcptest.Fill(near, 1)
				tcptest.Fill(far, 2)
				tcptest.Completes(t, tcptest.Submit(t, e, reqs...))
				for _, r := range reqs {
					require.Equal(t, hostmem.At(r.Local, size), hostmem.At(uintptr(r.Remote), size))
				}
				require.Equal(t, blocks+3, p.Connections())
			})
		}
	}
}

func TestAV1WriteIsNotTakenForCompleteWhenThePeerStoppedInTheMiddle(t *testing.T) {
	for name, end := range map[string]func(*tcptest.Visitor){"closes": func(*tcptest.Visitor) {}, "resets": (*tcptest.Visitor).Reset} {
		t.Run(name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 8<<20), tcptest.Mapped(t, 8<<20)
			p := tcptest.Perform(t, 1, func(v *tcptest.Visitor, _ int) {
				var h wire.Header
				_ = v.Header(&h) && v.Skip(1<<20)
				end(v)
			}, far)
			e := newEngine(t, tcptest.FewRetries)
			b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far))
			tcptest.FailsOnly(t, b, 0)
			require.ErrorContains(t, b.Err(), p.Name)
			require.ErrorContains(t, b.Err(), "after 3 tries")
			require.Equal(t, 3, p.Connections())
		})
	}
}

// dirtyStack moves the goroutine's stack and has others write to where it was.
func dirtyStack() {
	growStack(200)
	var others sync.WaitGroup
	for range 200 {
		others.Go(func() { growStack(30) })
	}
	others.Wait()
}

//go:noinline
func growStack(depth int) byte {
	var frame [1024]byte
	for i := range frame {
		frame[i] = 0xAA
	}
	if depth > 0 {
		frame[0] += growStack(depth - 1)
	}
	return frame[depth%len(frame)]
}

func TestAFrameIsTheSameWhenTheStackOfItsGoroutineMoves(t *testing.T) {
	for _, version := range []int{1, 2} {
		memory := tcptest.Mapped(t, 4096)
		local := tcptest.Pattern(len(memory), 1)
		e := newEngine(t, tcptest.WithoutPool)
		p := tcptest.Perform(t, version, tcptest.ServeWell, memory)
		id := tcptest.OpenSegment(t, e, p.Name)
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, local, id, memory)))
		moved := make(chan error)
		go func() { // a goroutine with a stack that has not grown yet
			only := onlyPeer(t, e)
			o := newOneShot(only, &only.environment)
			conn, err := only.dial(o.ctx)
			if err == nil {
				o.send = func(s *sockio.Socket, v []sockio.Vector) (int, error) {
					dirtyStack()
					return s.Send(v)
				}
				one := piece{work: &core.Work{}, op: core.Write, local: hostmem.AddressOf(local), remote: uint64(hostmem.AddressOf(memory)), length: 4096}
				err = o.exchange(conn, &one)
				_ = conn.Close()
			}
			moved <- err
		}()
		require.NoError(t, <-moved)
		runtime.KeepAlive(local)
		for _, h := range p.Requests() {
			require.EqualValues(t, hostmem.AddressOf(memory), h.Addr)
			require.EqualValues(t, len(memory), h.Length)
		}
		require.Len(t, p.Requests(), 2)
	}
}

func TestAV1WriteIsNotTakenForCompleteWhenThePeerLeftPayloadUnread(t *testing.T) {
	near, far := tcptest.Mapped(t, 256<<10), tcptest.Mapped(t, 256<<10)
	p := tcptest.Perform(t, 1, func(v *tcptest.Visitor, _ int) {
		_ = v.Conn.SetReadBuffer(4096)
		_ = v.Conn.CloseWrite() // looks like the end of a peer that has taken all
		<-v.Peer.T.Context().Done()
	}, far)
	e := newEngine(t, tcptest.FewRetries)
	b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far))
	tcptest.FailsOnly(t, b, 0)
	require.ErrorContains(t, b.Err(), "bytes not received")
}

func TestAStatusThatComesInTwoPartsIsNotMixedUpWithTheOneBefore(t *testing.T) {
	near, far := tcptest.Mapped(t, 8192), tcptest.Mapped(t, 8192)
	firstIsDone := make(chan struct{})
	p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
		var h wire.Header
		_ = v.Header(&h) && v.Skip(int64(h.Length)) && v.Header(&h) && v.Skip(int64(h.Length))
		var answers [2 * wire.StatusSize]byte
		wire.PutStatus(answers[:], wire.StatusOK)
		wire.PutStatus(answers[wire.StatusSize:], 7)
		const part = wire.StatusSize + 3
		_ = v.Send(answers[:part])
		<-firstIsDone
		_ = v.Send(answers[part:])
		v.WaitForEnd()
	}), far)
	e := newEngine(t, tcptest.OneLane)
	b := tcptest.Submit(t, e, tcptest.Scattered(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far, 2, 100)...)
	require.Eventually(t, func() bool {
		state, _, err := b.Status(0)
		return err == nil && state == core.Completed
	}, tcptest.Patience, time.Millisecond)
	close(firstIsDone)
	tcptest.FailsOnly(t, b, 1)
}

func TestAnswersMayComeInPiecesOfAnySize(t *testing.T) {
	const blocks, size = 600, 37
	near, far := tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 1<<16)
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) {
		var h wire.Header
		var answers []byte
		for i := 0; v.Header(&h); i++ {
			place := hostmem.At(uintptr(h.Addr), h.Length)
			if h.Op == wire.Write {
				v.Skip(0)
				if _, err := readFull(v, place); err != nil {
					return
				}
			}
			var status [wire.StatusSize]byte
			wire.PutStatus(status[:], wire.StatusOK)
			answers = append(answers, status[:]...)
			if h.Op == wire.Read {
				answers = append(answers, place...)
			}
			if i%200 != 199 {
				continue
			}
			for len(answers) > 0 {
				n := min(1+rand.IntN(29), len(answers))
				if !v.Send(answers[:n]) {
					return
				}
				answers = answers[n:]
			}
		}
	}, far)
	e := newEngine(t, tcptest.OneLane)
	id := tcptest.OpenSegment(t, e, p.Name)
	tcptest.Fill(near, 1)
	tcptest.Fill(far, 2)
	reqs := tcptest.Scattered(core.Write, near, id, far, blocks, size)
	for i := range reqs {
		reqs[i].Opcode = tcptest.Opcodes[rand.IntN(2)]
	}
	tcptest.Completes(t, tcptest.Submit(t, e, reqs...))
	for _, r := range reqs {
		require.Equal(t, hostmem.At(r.Local, size), hostmem.At(uintptr(r.Remote), size))
	}
	require.Equal(t, 1, p.Connections())
}

func readFull(v *tcptest.Visitor, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := v.Conn.Read(b[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func TestSurplusBytesEndTheConnectionAndHarmNoTransfer(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
		var h wire.Header
		_ = v.Header(&h) && v.Obey(h) && v.Send([]byte("surplus"))
		v.WaitForEnd()
	}), far)
	e := newEngine(t, tcptest.OneLane)
	id := tcptest.OpenSegment(t, e, p.Name)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
	require.Eventually(t, func() bool { return onlyPeer(t, e).link().Connections == 0 }, tcptest.Patience, time.Millisecond)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, near, id, far)))
	require.Equal(t, 2, p.Connections())
}

func TestAPeerThatNeverAnswersIsGivenUpAfterTheStatusTimeout(t *testing.T) {
	for _, way := range tcptest.Ways {
		for _, op := range tcptest.Opcodes {
			t.Run(way.Name+"/"+op.String(), func(t *testing.T) {
				near, far, good := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
				p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) { v.WaitForEnd(); <-v.Peer.T.Context().Done() }, far)
				q := tcptest.Perform(t, 2, tcptest.ServeWell, good)
				e := newEngine(t, way.Config, tcptest.Impatient)
				b := tcptest.Submit(t, e, tcptest.Ask(op, near, tcptest.OpenSegment(t, e, p.Name), far))
				tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(op, near, tcptest.OpenSegment(t, e, q.Name), good)))
				tcptest.FailsOnly(t, b, 0)
				require.ErrorIs(t, b.Err(), errStalled)
				require.ErrorContains(t, b.Err(), p.Name)
				require.Equal(t, 1, p.Connections())
			})
		}
	}
}

// As with Mooncake: a WRITE that waits for its status makes no progress.
func TestAPeerThatNeverAnswersIsGivenUpAfterTheProgressTimeout(t *testing.T) {
	for _, way := range tcptest.Ways {
		for _, op := range tcptest.Opcodes {
			t.Run(way.Name+"/"+op.String(), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
				p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) { v.WaitForEnd(); <-v.Peer.T.Context().Done() }, far)
				e := newEngine(t, way.Config, tcptest.Impatient, func(c *core.Config) { c.StatusTimeout = time.Hour })
				b := tcptest.Submit(t, e, tcptest.Ask(op, near, tcptest.OpenSegment(t, e, p.Name), far))
				tcptest.FailsOnly(t, b, 0)
				require.ErrorIs(t, b.Err(), errStalled)
				require.ErrorContains(t, b.Err(), "for 200ms (MC_TCP_PROGRESS_TIMEOUT_SEC)")
			})
		}
	}
}

func TestAPeerThatTakesNoPayloadIsGivenUpAfterTheProgressTimeout(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 32<<20), tcptest.Mapped(t, 32<<20)
			p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) { <-v.Peer.T.Context().Done() }, far)
			e := newEngine(t, way.Config, tcptest.Impatient, func(c *core.Config) { c.StatusTimeout = time.Hour })
			b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far))
			tcptest.FailsOnly(t, b, 0)
			require.ErrorIs(t, b.Err(), errStalled)
		})
	}
}

func TestWhatIsQueuedForAPeerThatStandsStillFailsWithWhatIsInFlight(t *testing.T) {
	const blocks = 20 * windowPieces
	near, far := tcptest.Mapped(t, 2*blocks), tcptest.Mapped(t, 2*blocks)
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) { v.WaitForEnd() }, far)
	e := newEngine(t, tcptest.Impatient, tcptest.OneLane)
	b := tcptest.Submit(t, e, tcptest.Scattered(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far, blocks, 1)...)
	tcptest.Wait(t, b)
	require.EqualValues(t, blocks, b.Summary().Failed)
	require.Equal(t, 1, p.Connections())
}

func TestOneRejectedRequestOfManyFailsAlone(t *testing.T) {
	for _, way := range tcptest.Ways[:2] {
		for _, op := range tcptest.Opcodes {
			t.Run(way.Name+"/"+op.String(), func(t *testing.T) {
				const blocks, size = 500, 100
				near, far := tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 1<<16)
				var bad atomic.Uint64
				p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, n int) {
					var h wire.Header
					for v.Header(&h) {
						if h.Addr == bad.Load() {
							v.Reject()
							return
						}
						if !v.Obey(h) {
							return
						}
					}
				}, far)
				e := newEngine(t, way.Config)
				reqs := tcptest.Scattered(op, near, tcptest.OpenSegment(t, e, p.Name), far, blocks, size)
				bad.Store(reqs[333].Remote)
				b := tcptest.Submit(t, e, reqs...)
				tcptest.FailsOnly(t, b, 333)
				require.ErrorContains(t, b.Err(), "rejected")
				require.ErrorContains(t, b.Err(), p.Name)
				if way.Name == "lanes" {
					require.LessOrEqual(t, p.Connections(), 3)
				}
			})
		}
	}
}

func TestManyRejectedRequestsFailAndTheOthersComplete(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			const blocks, size = 4000, 16
			far, near := tcptest.Mapped(t, 1<<17), tcptest.Mapped(t, 1<<17)
			target, e := newEngine(t), newEngine(t, way.Config)
			const shown = 40
			require.NoError(t, target.Register(hostmem.AddressOf(far), shown*(size+1), "cpu:0", true))
			reqs := tcptest.Scattered(core.Write, near, tcptest.OpenSegment(t, e, target.Name()), far, blocks, size)
			failing := make([]int, 0, blocks)
			for i := shown; i < blocks; i++ {
				failing = append(failing, i)
			}
			tcptest.FailsOnly(t, tcptest.Submit(t, e, reqs...), failing...)
		})
	}
}

func TestMemoryRegisteredAfterTheSegmentWasOpenedIsFound(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 8192), tcptest.Mapped(t, 8192)
			target, e := newEngine(t), newEngine(t, way.Config)
			require.NoError(t, target.Register(hostmem.AddressOf(far), 4096, "cpu:0", true))
			id := tcptest.OpenSegment(t, e, target.Name())
			tcptest.FailsOnly(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near[4096:], id, far[4096:])), 0)
			require.NoError(t, target.Register(hostmem.AddressOf(far)+4096, 4096, "cpu:0", true))
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near[4096:], id, far[4096:])))
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, near[4096:], id, far[4096:])))
		})
	}
}

func TestARangeThatIsRejectedOnceAndShownThenIsSentOnceMore(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
		var h wire.Header
		if v.Header(&h) {
			v.Peer.Show(2, v.Peer.Memory...)
			v.Reject()
		}
	}), far)
	p.Show(2)
	e := newEngine(t)
	b := tcptest.Submit(t, e, tcptest.Ask(core.Read, near, tcptest.OpenSegment(t, e, p.Name), far))
	tcptest.Completes(t, b)
	require.Equal(t, 2, p.Connections())
}

func TestAnUnknownStatusCodeFailsItsTaskAtOnce(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
		var h wire.Header
		_ = v.Header(&h) && v.Status(7)
		v.WaitForEnd()
	}), far)
	e := newEngine(t)
	b := tcptest.Submit(t, e, tcptest.Ask(core.Read, near, tcptest.OpenSegment(t, e, p.Name), far))
	tcptest.FailsOnly(t, b, 0)
	require.ErrorContains(t, b.Err(), "code 7")
	require.Equal(t, 1, p.Connections())
}

func TestMemoryThatThePeerCannotAccessFailsItsTaskAtOnce(t *testing.T) {
	for _, way := range tcptest.Ways[:2] {
		t.Run(way.Name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 3*4096)
			owner := newEngine(t)
			require.NoError(t, owner.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
			tcptest.Unmap(t, far[4096:8192])
			e := newEngine(t, way.Config)
			id := tcptest.OpenSegment(t, e, owner.Name())
			for _, op := range []core.Opcode{core.Read, core.Write} {
				b := tcptest.Submit(t, e, tcptest.Ask(op, near, id, far[:4096]), tcptest.Ask(op, near, id, far[4096:8192]), tcptest.Ask(op, near, id, far[8192:]))
				tcptest.FailsOnly(t, b, 1)
				require.ErrorContains(t, b.Err(), fmt.Sprintf("%#x+4096", hostmem.AddressOf(far[4096:])))
				require.ErrorContains(t, b.Err(), "unmapped or protected")
				require.NotContains(t, b.Err().Error(), "tries")
			}
		})
	}
}

func TestAdjacentBlocksAreMergedInsideOneBufferOfThePeer(t *testing.T) {
	for _, op := range tcptest.Opcodes {
		t.Run(op.String(), func(t *testing.T) {
			const size, blocks = 512, 64 // the first 16 in one buffer, the others in a second that follows it
			near, far := tcptest.Mapped(t, size*blocks), tcptest.Mapped(t, size*blocks)
			first, second := far[:16*size], far[16*size:]
			p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
			p.Show(2, first, second)
			e := newEngine(t, tcptest.OneLane)
			tcptest.Fill(near, 1)
			tcptest.Fill(far, 2)
			id := tcptest.OpenSegment(t, e, p.Name)
			var reqs []core.Request
			for i := range blocks {
				reqs = append(reqs, tcptest.Ask(op, near[i*size:(i+1)*size], id, far[i*size:(i+1)*size]))
			}
			tcptest.Completes(t, tcptest.Submit(t, e, reqs...))
			require.Equal(t, near, far)
			require.Equal(t, []wire.Header{
				{Op: opcodeOf(op), V2: true, Addr: uint64(hostmem.AddressOf(first)), Length: uint64(len(first))},
				{Op: opcodeOf(op), V2: true, Addr: uint64(hostmem.AddressOf(second)), Length: uint64(len(second))},
			}, p.Requests())
		})
	}
}

func TestAMergedRequestThatIsRejectedFailsOnlyTheBadTask(t *testing.T) {
	for _, way := range tcptest.Ways[:2] {
		t.Run(way.Name, func(t *testing.T) {
			const size, blocks, bad = 512, 32, 11
			near, far := tcptest.Mapped(t, size*blocks), tcptest.Mapped(t, size*blocks)
			p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) {
				var h wire.Header
				for v.Header(&h) {
					hole := uint64(hostmem.AddressOf(v.Peer.Memory[0])) + bad*size
					if h.Addr <= hole && hole < h.Addr+h.Length {
						v.Reject()
						return
					}
					if !v.Obey(h) {
						return
					}
				}
			}, far)
			e := newEngine(t, way.Config)
			tcptest.Fill(near, 1)
			id := tcptest.OpenSegment(t, e, p.Name)
			var reqs []core.Request
			for i := range blocks {
				reqs = append(reqs, tcptest.Ask(core.Write, near[i*size:(i+1)*size], id, far[i*size:(i+1)*size]))
			}
			tcptest.FailsOnly(t, tcptest.Submit(t, e, reqs...), bad)
			require.Equal(t, near[:bad*size], far[:bad*size])
			require.Equal(t, near[(bad+1)*size:], far[(bad+1)*size:])
		})
	}
}

// TestLocalMemoryThatCannotBeAccessedFailsItsTaskAlone covers small blocks, several of which the kernel moves in one
// step, large ones, and adjacent ones, which travel as one request.
func TestLocalMemoryThatCannotBeAccessedFailsItsTaskAlone(t *testing.T) {
	const blocks, bad = 40, 17
	page := unix.Getpagesize()
	for _, way := range tcptest.Ways {
		for _, op := range tcptest.Opcodes {
			for _, shape := range []struct {
				name           string
				length, stride int
			}{{"small", 64, 2 * page}, {"adjacent", page, page}, {"large", 48 * page, 64 * page}} {
				t.Run(way.Name+"/"+op.String()+"/"+shape.name, func(t *testing.T) {
					near, far := tcptest.Mapped(t, blocks*shape.stride), tcptest.Mapped(t, blocks*shape.stride)
					target, e := newEngine(t), newEngine(t, way.Config, tcptest.OneLane)
					require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
					id := tcptest.OpenSegment(t, e, target.Name())
					tcptest.Fill(near, 1)
					tcptest.Fill(far, 2)
					var reqs []core.Request
					for i := range blocks {
						at := i * shape.stride
						reqs = append(reqs, tcptest.Ask(op, near[at:at+shape.length], id, far[at:at+shape.length]))
					}
					hole := near[bad*shape.stride+(shape.length-1)/page*page:][:page]
					tcptest.Unmap(t, hole)
					b := tcptest.Submit(t, e, reqs...)
					tcptest.FailsOnly(t, b, bad)
					require.ErrorIs(t, b.Err(), unix.EFAULT)
					require.NoError(t, unix.Mprotect(hole, unix.PROT_READ|unix.PROT_WRITE))
					for i, r := range reqs {
						if i != bad {
							require.Equal(t, hostmem.At(r.Local, r.Length), hostmem.At(uintptr(r.Remote), r.Length))
						}
					}
				})
			}
		}
	}
}

func TestATaskOfAbsurdLengthFailsSoon(t *testing.T) {
	for _, way := range tcptest.Ways {
		for _, op := range tcptest.Opcodes {
			t.Run(way.Name+"/"+op.String(), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
				target, e := newEngine(t), newEngine(t, way.Config)
				require.NoError(t, target.Register(hostmem.AddressOf(far), 4096, "cpu:0", true))
				id := tcptest.OpenSegment(t, e, target.Name())
				absurd := tcptest.Ask(op, near, id, far)
				absurd.Length = 1 << 60
				wrapped := tcptest.Ask(op, near, id, far)
				wrapped.Remote = ^uint64(0) - 100
				tcptest.FailsOnly(t, tcptest.Submit(t, e, absurd, tcptest.Ask(op, near, id, far), wrapped, absurd), 0, 2, 3)
			})
		}
	}
}

func TestAHundredThousandRequestsTakeBoundedMemoryAndConnections(t *testing.T) {
	const blocks, size = 100_000, 16
	near, far := tcptest.Mapped(t, blocks*(size+1)), tcptest.Mapped(t, blocks*(size+1))
	target, e := newEngine(t), newEngine(t)
	require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
	reqs := tcptest.Scattered(core.Write, near, tcptest.OpenSegment(t, e, target.Name()), far, blocks, size)
	tcptest.Fill(near, 1)
	b, err := e.AllocateBatch(blocks)
	require.NoError(t, err)
	before := memoryInUse()
	goroutines := runtime.NumGoroutine()
	require.NoError(t, e.Submit(b, reqs, nil))
	most, mostGoroutines := uint64(0), 0
	done := make(chan struct{})
	b.OnDone(func() { close(done) })
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
			most, mostGoroutines = max(most, memoryInUse()), max(mostGoroutines, runtime.NumGoroutine())
		}
	}
	tcptest.Completes(t, b)
	const perTask = 80 // what the batch itself holds for a task
	require.Less(t, int64(most)-int64(before), int64(blocks*perTask+16<<20))
	require.LessOrEqual(t, mostGoroutines-goroutines, 4*e.Config().LanesPerPeer)
	for _, r := range reqs {
		if !bytes.Equal(hostmem.At(r.Local, size), hostmem.At(uintptr(r.Remote), size)) {
			t.Fatalf("%#x differs", r.Remote)
		}
	}
}

func memoryInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// serveTogether serves well as soon as every one of so many lanes has asked for something.
func serveTogether(lanes int) func(v *tcptest.Visitor, n int) {
	var busy sync.WaitGroup
	busy.Add(lanes)
	return func(v *tcptest.Visitor, n int) {
		var h wire.Header
		if v.Header(&h) {
			busy.Done()
			busy.Wait()
			_ = v.Obey(h)
			tcptest.ServeWell(v, n)
		}
	}
}

func TestALargeTaskTravelsOnAllLanes(t *testing.T) {
	near, far := tcptest.Mapped(t, 64<<20), tcptest.Mapped(t, 64<<20)
	tcptest.Fill(near, 1)
	e := newEngine(t)
	p := tcptest.Perform(t, 2, serveTogether(e.Config().LanesPerPeer), far)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near[3:], tcptest.OpenSegment(t, e, p.Name), far[3:])))
	require.True(t, bytes.Equal(near[3:], far[3:]))
	require.Equal(t, e.Config().LanesPerPeer, p.Connections())
	for _, h := range p.Requests() {
		require.LessOrEqual(t, h.Length, uint64(e.Config().SliceSize))
	}
}

func TestOneLaneReadsWhatMooncakeSendsFromOneThread(t *testing.T) {
	for isKvferry, lanes := range map[bool]int{true: 4, false: 1} {
		near, far := tcptest.Mapped(t, mooncakeSize), tcptest.Mapped(t, mooncakeSize)
		tcptest.Fill(far, 2)
		p := tcptest.Perform(t, 2, serveTogether(lanes), far)
		p.Mu.Lock()
		p.Shown.IsKvferry = isKvferry
		p.Mu.Unlock()
		e := newEngine(t, func(c *core.Config) { c.LanesPerPeer = 4 })
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, near, tcptest.OpenSegment(t, e, p.Name), far)))
		require.True(t, bytes.Equal(near, far))
		require.Equal(t, lanes, p.Connections(), "kvferry: %v", isKvferry)
	}
}

// Lanes that take at the same moment do not see what the others have in hand, so a share may be smaller than a lane's part of the whole.
func TestEveryLaneGetsAShareOfWhatIsQueued(t *testing.T) {
	const lanes = 4
	near, far := tcptest.Mapped(t, lanes<<20), tcptest.Mapped(t, lanes<<20)
	tcptest.Fill(near, 3)
	const slice, each = 64 << 10, 4
	var came sync.WaitGroup // until every lane has a share, none of it answered
	came.Add(lanes)
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, n int) {
		var h wire.Header
		for range each {
			if !v.Header(&h) {
				return
			}
			_, _ = io.ReadFull(v.Conn, hostmem.At(uintptr(h.Addr), h.Length))
		}
		came.Done()
		came.Wait()
		for range each {
			v.Status(wire.StatusOK)
		}
		tcptest.ServeWell(v, n)
	}, far)
	e := newEngine(t, func(c *core.Config) { c.LanesPerPeer, c.SliceSize = lanes, slice })
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far)))
	require.True(t, bytes.Equal(near, far))
}

func TestAShortBatchDoesNotWaitForALongOneBeforeIt(t *testing.T) {
	near, far := tcptest.Mapped(t, 64<<20), tcptest.Mapped(t, 64<<20)
	release := make(chan struct{})
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) {
		<-release
		tcptest.ServeWell(v, 0)
	}, far)
	e := newEngine(t, tcptest.OneLane)
	id := tcptest.OpenSegment(t, e, p.Name)
	long := tcptest.Submit(t, e, tcptest.Ask(core.Read, near[1<<20:], id, far[1<<20:]))
	short := tcptest.Submit(t, e, tcptest.Ask(core.Read, near[:100], id, far[:100]))
	close(release)
	tcptest.Completes(t, short)
	tcptest.Completes(t, long)
	place := slices.IndexFunc(p.Requests(), func(h wire.Header) bool { return h.Length == 100 })
	require.Less(t, place, windowBytes>>20+3, "of %d", len(p.Requests()))
}

func TestManyGoroutinesSubmitAtOnce(t *testing.T) {
	const workers, rounds, size = 16, 60, 300
	near, far := tcptest.Mapped(t, workers*4*(size+1)), tcptest.Mapped(t, workers*4*(size+1))
	target, e := newEngine(t), newEngine(t)
	require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
	id := tcptest.OpenSegment(t, e, target.Name())
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			mine := near[w*4*(size+1) : (w+1)*4*(size+1)]
			theirs := far[w*4*(size+1) : (w+1)*4*(size+1)]
			for round := range rounds {
				tcptest.Fill(mine, byte(round))
				writeErr := finish(e, tcptest.Scattered(core.Write, mine, id, theirs, 4, size))
				tcptest.Fill(mine, 0)
				readErr := finish(e, tcptest.Scattered(core.Read, mine, id, theirs, 4, size))
				assert.NoError(t, errors.Join(writeErr, readErr))
				for at := 0; at < len(mine); at += size + 1 {
					assert.True(t, bytes.Equal(tcptest.Pattern(len(mine), byte(round))[at:at+size], mine[at:at+size]), "round %d", round)
				}
			}
		})
	}
	all.Wait()
}

// finish has the requests done and returns why one failed.
func finish(e *core.Engine, reqs []core.Request) error {
	b, err := e.AllocateBatch(len(reqs))
	if err != nil {
		return err
	}
	if err := e.Submit(b, reqs, nil); err != nil {
		return err
	}
	done := make(chan struct{})
	b.OnDone(func() { close(done) })
	<-done
	return errors.Join(b.Err(), e.FreeBatch(b))
}

func TestADiscardedReadIsNotTouchedAfterwards(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 1<<20), tcptest.Mapped(t, 1<<20)
			half, discarded, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
			p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
				defer close(over)
				var h wire.Header
				_ = v.Header(&h) && (!h.V2 || v.Status(wire.StatusOK)) && v.Send(make([]byte, h.Length/2))
				close(half)
				<-discarded
				v.Send(make([]byte, h.Length/2))
				v.WaitForEnd()
			}), far)
			e := newEngine(t, way.Config)
			id := tcptest.OpenSegment(t, e, p.Name)
			b := tcptest.Submit(t, e, tcptest.Ask(core.Read, near, id, far))
			<-half
			require.NoError(t, e.DiscardBatch(b))
			tcptest.Fill(near, 5)
			close(discarded)
			<-over
			require.True(t, bytes.Equal(tcptest.Pattern(len(near), 5), near))
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, near, id, far)))
		})
	}
}

func TestADiscardedWriteIsNotReadAfterwards(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 64<<20), tcptest.Mapped(t, 64<<20)
			begun, discarded, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
			var once sync.Once
			var seen atomic.Bool
			p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, n int) {
				var h wire.Header
				if n > 0 || !v.Header(&h) {
					tcptest.ServeWell(v, n)
					return
				}
				once.Do(func() { close(begun) })
				<-discarded
				chunk := make([]byte, 1<<16)
				for {
					m, err := v.Conn.Read(chunk)
					if bytes.IndexByte(chunk[:m], 0xee) >= 0 {
						seen.Store(true)
					}
					if err != nil {
						break
					}
				}
				close(over)
			}, far)
			e := newEngine(t, way.Config, tcptest.OneLane)
			id := tcptest.OpenSegment(t, e, p.Name)
			b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far))
			<-begun
			require.NoError(t, e.DiscardBatch(b))
			for i := range near {
				near[i] = 0xee
			}
			close(discarded)
			<-over
			require.False(t, seen.Load())
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
		})
	}
}

func TestADiscardHarmsNoOtherBatch(t *testing.T) {
	const rounds = 15
	for _, way := range tcptest.Ways {
		for _, op := range tcptest.Opcodes {
			t.Run(way.Name+"/"+op.String(), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 8<<20), tcptest.Mapped(t, 8<<20)
				target, e := newEngine(t), newEngine(t, way.Config)
				require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
				id := tcptest.OpenSegment(t, e, target.Name())
				for range rounds {
					other := tcptest.Submit(t, e, tcptest.Scattered(op, near[4<<20:], id, far[4<<20:], 50, 2000)...)
					b := tcptest.Submit(t, e, tcptest.Ask(op, near[:4<<20], id, far[:4<<20]))
					last := tcptest.Submit(t, e, tcptest.Scattered(op, near[6<<20:], id, far[6<<20:], 50, 2000)...)
					require.NoError(t, e.DiscardBatch(b))
					tcptest.Completes(t, other)
					tcptest.Completes(t, last)
				}
			})
		}
	}
}

func TestADiscardWhileAConnectionIsMadeHarmsNoOtherBatch(t *testing.T) {
	near, far := tcptest.Mapped(t, 8192), tcptest.Mapped(t, 8192)
	p := tcptest.Perform(t, 1, tcptest.ServeWell, far)
	p.Mu.Lock()
	good := p.Shown.DataPort
	p.Shown.DataPort = tcptest.BlockedPort(t)
	p.Mu.Unlock()
	e := newEngine(t, tcptest.OneLane)
	id := tcptest.OpenSegment(t, e, p.Name)
	b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near[:4096], id, far[:4096]))
	other := tcptest.Submit(t, e, tcptest.Ask(core.Write, near[4096:], id, far[4096:]))
	require.Eventually(t, func() bool {
		onlyPeer(t, e).mu.Lock()
		defer onlyPeer(t, e).mu.Unlock()
		return onlyPeer(t, e).queued == 4096 // the first is with its carrier
	}, tcptest.Patience, time.Millisecond)
	p.Mu.Lock()
	p.Shown.DataPort = good
	p.Mu.Unlock()
	_, err := e.OpenSegmentNoCache(p.Name)
	require.NoError(t, err)
	require.NoError(t, e.DiscardBatch(b))
	tcptest.Completes(t, other)
}

func TestAPeerThatCameBackOnAnotherPortIsFound(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
			p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
			e := newEngine(t, way.Config)
			id := tcptest.OpenSegment(t, e, p.Name)
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
			p.LeavePort()
			p.HangUp()
			p.EnterPort(tcptest.ServeWell)
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, near, id, far)))
		})
	}
}

// The owner of a segment restarted, and its former data port is somebody else's now.
func TestAfterALossTheDescriptorIsFetchedBeforeTheNextConnection(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	tcptest.Fill(near, 1)
	var others atomic.Int32
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, n int) {
		if n > 0 {
			others.Add(1)
			return
		}
		tcptest.ServeWell(v, n)
	}, far)
	former := p.Port
	t.Cleanup(func() { _ = former.Close() })
	e := newEngine(t, tcptest.OneLane)
	id := tcptest.OpenSegment(t, e, p.Name)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near[:1], id, far[:1])))
	p.EnterPort(tcptest.ServeWell)
	p.HangUp()
	require.Eventually(t, func() bool { return onlyPeer(t, e).link().Connections == 0 }, tcptest.Patience, time.Millisecond)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
	require.Equal(t, near, far)
	require.Zero(t, others.Load())
}

func TestADataPortThatIsGoneFailsTheTransferWithTheReason(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
			p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
			e := newEngine(t, way.Config)
			id := tcptest.OpenSegment(t, e, p.Name)
			p.LeavePort()
			b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far))
			tcptest.FailsOnly(t, b, 0)
			require.ErrorContains(t, b.Err(), p.Name)
			require.ErrorIs(t, b.Err(), unix.ECONNREFUSED)
			require.Equal(t, 2, p.Fetched())
		})
	}
}

func TestAPeerThatCameBackWithVersion1IsNeverSentVersion2(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
	e := newEngine(t)
	id := tcptest.OpenSegment(t, e, p.Name)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
	p.LeavePort()
	p.Show(1, far)
	p.EnterPort(tcptest.ServeWell)
	p.HangUp()
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
	requests := p.Requests()
	require.False(t, requests[len(requests)-1].V2)
	require.Len(t, requests, 2)
}

func TestIdleConnectionsThatThePeerClosesCountForNothing(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
	e := newEngine(t, tcptest.FewRetries, tcptest.OneLane)
	id := tcptest.OpenSegment(t, e, p.Name)
	for range 6 {
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
		p.HangUp()
		require.Eventually(t, func() bool { return onlyPeer(t, e).link().Connections == 0 }, tcptest.Patience, time.Millisecond)
	}
	for range 6 { // lanes that never carried anything
		p := onlyPeer(t, e)
		p.ended(newLane(p, &p.environment), ending{reason: errRetired})
	}
	require.Zero(t, onlyPeer(t, e).lossesInARow)
}

func TestTheDescriptorIsNotFetchedForEveryConnection(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	for _, way := range tcptest.Ways[1:] {
		t.Run(way.Name, func(t *testing.T) {
			p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
			e := newEngine(t, way.Config)
			id := tcptest.OpenSegment(t, e, p.Name)
			for range 5 {
				tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far)))
			}
			require.Equal(t, 1, p.Fetched())
		})
	}
}

func TestAnEarlyAcknowledgementDoesNotCompleteAWriteThatIsStillBeingSent(t *testing.T) {
	near, far := tcptest.Mapped(t, 64<<20), tcptest.Mapped(t, 64<<20)
	tcptest.Fill(near, 1) // it is in memory: a lane that waits for pages is overtaken
	acknowledged, release := make(chan struct{}), make(chan struct{})
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) {
		var h wire.Header
		if v.Header(&h) && v.Status(wire.StatusOK) {
			close(acknowledged)
			<-release
			v.Skip(int64(h.Length))
		}
		v.WaitForEnd()
	}, far)
	e := newEngine(t, tcptest.OneLane, func(c *core.Config) { c.SliceSize = 64 << 20 })
	b := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, tcptest.OpenSegment(t, e, p.Name), far))
	<-acknowledged
	p0 := onlyPeer(t, e)
	require.Eventually(t, func() bool { // the status has been received
		p0.mu.Lock()
		l := p0.listed().all[0].(*lane)
		p0.mu.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		sent, moved := l.sent, l.moved.Load()
		return sent > 0 && moved == sent+wire.StatusSize
	}, tcptest.Patience, time.Millisecond)
	require.False(t, b.Done())
	close(release)
	tcptest.Completes(t, b)
}

func TestTheQueueStandsStillWhileTooMuchIsUnverified(t *testing.T) {
	const blocks = 3 * maxUnverified
	near, far := tcptest.Mapped(t, 2*blocks), tcptest.Mapped(t, 2*blocks)
	p := tcptest.Perform(t, 1, tcptest.ServeWell)
	e := newEngine(t)
	id := tcptest.OpenSegment(t, e, p.Name)
	p.Mu.Lock() // keeps the descriptor from being fetched
	b := tcptest.Submit(t, e, tcptest.Scattered(core.Write, near, id, far, blocks, 1)...)
	waiting := onlyPeer(t, e)
	require.Eventually(t, func() bool {
		waiting.mu.Lock()
		defer waiting.mu.Unlock()
		return len(waiting.unverified) == maxUnverified && len(waiting.listed().all) == 0
	}, tcptest.Patience, time.Millisecond)
	waiting.mu.Lock()
	require.Zero(t, waiting.wanted(false))
	waiting.mu.Unlock()
	p.Mu.Unlock()
	tcptest.Wait(t, b)
	require.EqualValues(t, blocks, b.Summary().Failed)
}

func TestVersion1AndConnectionsPerRequestReachOurOwnTarget(t *testing.T) {
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 40<<20), tcptest.Mapped(t, 40<<20)
			target, e := newEngine(t), newEngine(t, way.Config)
			require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
			id := tcptest.OpenSegment(t, e, target.Name())
			tcptest.Fill(near, 1)
			nothing := tcptest.Ask(core.Write, near[:0], id, far[:0])
			nothing.Remote, nothing.Local = 0, 0
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near[:1], id, far[:1]), nothing, tcptest.Ask(core.Write, near[1:4098], id, far[1:4098]),
				tcptest.Ask(core.Write, near[5000:39<<20+7], id, far[5000:39<<20+7])))
			require.True(t, bytes.Equal(near[:4098], far[:4098]))
			require.True(t, bytes.Equal(near[5000:39<<20+7], far[5000:39<<20+7]))
			tcptest.Fill(far, 9)
			tcptest.Completes(t, tcptest.Submit(t, e, nothing, tcptest.Ask(core.Read, near[3:39<<20], id, far[3:39<<20]), tcptest.Ask(core.Read, near[:1], id, far[:1])))
			require.True(t, bytes.Equal(near[3:39<<20], far[3:39<<20]))
			require.Equal(t, far[0], near[0])
		})
	}
}

func TestARequestWithAConnectionOfItsOwnTakesOneEach(t *testing.T) {
	for _, way := range tcptest.Ways[1:] {
		t.Run(way.Name, func(t *testing.T) {
			near, far := tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 1<<16)
			p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) { // as Mooncake 0.3.8 does
				var h wire.Header
				_ = v.Header(&h) && v.Obey(h)
			}, far)
			e := newEngine(t, way.Config)
			id := tcptest.OpenSegment(t, e, p.Name)
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Scattered(core.Write, near, id, far, 30, 100)...))
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Scattered(core.Read, near, id, far, 30, 100)...))
			require.Equal(t, 60, p.Connections())
		})
	}
}

func TestLinksCountPayloadAndErrors(t *testing.T) {
	near, far := tcptest.Mapped(t, 1<<16), tcptest.Mapped(t, 1<<16)
	p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
		var h wire.Header
		v.Header(&h)
	}), far)
	e := newEngine(t, tcptest.OneLane)
	id := tcptest.OpenSegment(t, e, p.Name)
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near[:1000], id, far[:1000])))
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, near[:700], id, far[:700])))
	require.Equal(t, []core.Link{{Peer: p.Name, Transport: "tcp", Direction: "initiator", Connections: 1,
		BytesOut: 1000, BytesIn: 700, Errors: 1}}, e.Links())
}

func TestClosingTheEngineEndsTransfersInFlight(t *testing.T) {
	for _, way := range tcptest.Ways {
		for _, op := range tcptest.Opcodes {
			t.Run(way.Name+"/"+op.String(), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 64<<20), tcptest.Mapped(t, 64<<20)
				p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) { <-v.Peer.T.Context().Done() }, far)
				e := newEngine(t, way.Config)
				id := tcptest.OpenSegment(t, e, p.Name)
				b := tcptest.Submit(t, e, tcptest.Ask(op, near, id, far))
				small := tcptest.Submit(t, e, tcptest.Scattered(op, near, id, far, 3000, 100)...)
				require.Eventually(t, func() bool { return p.Connections() > 0 }, tcptest.Patience, time.Millisecond)
				require.NoError(t, e.Close())
				require.True(t, b.Done())
				require.True(t, small.Done())
				require.ErrorIs(t, b.Err(), core.ErrClosed)
				require.EqualValues(t, 3000, small.Summary().Failed)
			})
		}
	}
}

func TestForgettingASegmentFailsItsTransfers(t *testing.T) {
	near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, n int) {
		if n == 0 {
			v.WaitForEnd()
		}
		tcptest.ServeWell(v, n)
	}, far)
	e := newEngine(t)
	b := tcptest.Submit(t, e, tcptest.Ask(core.Read, near, tcptest.OpenSegment(t, e, p.Name), far))
	require.Eventually(t, func() bool { return p.Connections() == 1 }, tcptest.Patience, time.Millisecond)
	require.NoError(t, e.RemoveLocalSegment(p.Name))
	tcptest.FailsOnly(t, b, 0)
	require.ErrorContains(t, b.Err(), "was removed")
	tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, near, tcptest.OpenSegment(t, e, p.Name), far)))
}

func TestTasksTimeOutAndLeaveTheOthersAlone(t *testing.T) {
	near, far := tcptest.Mapped(t, 8192), tcptest.Mapped(t, 8192)
	p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) { v.WaitForEnd() }), far)
	e := newEngine(t, func(c *core.Config) { c.SliceTimeout = 200 * time.Millisecond })
	b := tcptest.Submit(t, e, tcptest.Ask(core.Read, near, tcptest.OpenSegment(t, e, p.Name), far))
	require.Equal(t, []core.State{core.TimedOut}, tcptest.States(t, b))
	require.ErrorIs(t, b.Err(), core.ErrSliceTimeout)
}

// TestRandomBatchesMatchAModelWhileConnectionsBreak moves random blocks both ways between two engines, and checks both
// memories against copies on which the same was done by hand.
func TestRandomBatchesMatchAModelWhileConnectionsBreak(t *testing.T) {
	const size, rounds = 4 << 20, 10
	for _, way := range tcptest.Ways {
		t.Run(way.Name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			near, far := tcptest.Mapped(t, size), tcptest.Mapped(t, size)
			tcptest.Fill(near, 1)
			tcptest.Fill(far, 2)
			wantNear, wantFar := slices.Clone(near), slices.Clone(far)
			target, e := newEngine(t), newEngine(t, way.Config, func(c *core.Config) { c.RetryCount, c.SliceSize = 127, 64<<10 })
			for at := 0; at < size; at += 1 << 20 { // four buffers side by side
				require.NoError(t, target.Register(hostmem.AddressOf(far[at:]), 1<<20, "cpu:0", true))
			}
			id := tcptest.OpenSegment(t, e, target.Name())

			stop := killNowAndThen(transportOf(t, target))
			defer stop()
			for range rounds {
				var batches []*core.Batch
				reqs := randomRequests(random, id, near, far, wantNear, wantFar)
				for len(reqs) > 0 {
					n := 1 + random.IntN(len(reqs))
					batches = append(batches, tcptest.Submit(t, e, reqs[:n]...))
					reqs = reqs[n:]
				}
				for _, b := range batches {
					tcptest.Completes(t, b)
					require.NoError(t, e.FreeBatch(b))
				}
			}
			stop()
			require.True(t, bytes.Equal(wantNear, near))
			require.True(t, bytes.Equal(wantFar, far))
		})
	}
}

// killNowAndThen breaks data connections at the target until stop is called.
func killNowAndThen(t *testTransport) (stop func()) {
	var killer sync.WaitGroup
	over := make(chan struct{})
	killer.Go(func() {
		pause := time.NewTicker(5 * time.Millisecond)
		defer pause.Stop()
		for {
			select {
			case <-over:
				return
			case <-pause.C:
				killOne(t)
			}
		}
	})
	return sync.OnceFunc(func() {
		close(over)
		killer.Wait()
	})
}

// killOne breaks a data connection to a port of this process, at the target.
func killOne(t *testTransport) {
	for _, one := range tcptest.SocketsOf(t.Endpoint().Port) {
		if one.Accepted {
			_ = shut.Reset(one.File) // fails when closed meanwhile
			return
		}
	}
}

// randomRequests cuts both memories into blocks that do not overlap, pairs them, and does to the models what is asked.
func randomRequests(random *rand.Rand, id core.SegmentID, near, far, wantNear, wantFar []byte) (reqs []core.Request) {
	const quarter = 1 << 20
	nearAt := 0
	for farAt := 0; nearAt < len(near) && farAt < len(far); {
		length := 1 + random.IntN(1<<uint(2+random.IntN(17)))
		length = min(length, len(near)-nearAt, quarter-farAt%quarter)
		op := tcptest.Opcodes[random.IntN(2)]
		reqs = append(reqs, tcptest.Ask(op, near[nearAt:nearAt+length], id, far[farAt:farAt+length]))
		if op == core.Write {
			copy(wantFar[farAt:farAt+length], wantNear[nearAt:nearAt+length])
		} else {
			copy(wantNear[nearAt:nearAt+length], wantFar[farAt:farAt+length])
		}
		nearAt, farAt = nearAt+length, farAt+length
		if random.IntN(3) == 0 { // otherwise adjacent to the next
			nearAt += random.IntN(50)
			farAt += random.IntN(50)
		}
	}
	if random.IntN(2) == 0 {
		random.Shuffle(len(reqs), func(i, j int) { reqs[i], reqs[j] = reqs[j], reqs[i] })
	}
	return reqs
}
