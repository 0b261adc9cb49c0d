package client

import (
	"fmt"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/hostmem/hostmemtest"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

func TestAnswersAreReceivedWhileALaneWaitsForAPageThatIsToBeSent(t *testing.T) {
	const length = 4096
	missing, near, far := hostmemtest.New(t, length), tcptest.Mapped(t, length), tcptest.Mapped(t, 2*length)
	answer := make(chan struct{})
	p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, n int) {
		var h wire.Header
		if n == 0 && v.Header(&h) && v.Skip(length) {
			<-answer
			v.Status(wire.StatusOK)
		}
		tcptest.ServeWell(v, n)
	}, far)
	e := newEngine(t, tcptest.OneLane)
	id := tcptest.OpenSegment(t, e, p.Name)
	first := tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far[:length]))
	require.Eventually(t, func() bool { return len(p.Requests()) == 1 }, tcptest.Patience, time.Millisecond)
	second := tcptest.Submit(t, e, tcptest.Ask(core.Write, missing.Memory[:length], id, far[length:]))
	missing.AwaitFault(t)
	close(answer)
	tcptest.Completes(t, first)
	missing.Release(t)
	tcptest.Completes(t, second)
}

// The requests are queued together, and one lane could take all of them at once.
func TestATransferDoesNotWaitForThePagesOfAnother(t *testing.T) {
	const length = 4096
	for _, op := range tcptest.Opcodes {
		for _, place := range []int{0, 1, 2} {
			t.Run(fmt.Sprintf("%v, missing in place %d", op, place), func(t *testing.T) {
				missing, near, far := hostmemtest.New(t, length), tcptest.Mapped(t, 3*length), tcptest.Mapped(t, 3*length)
				p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
				e := newEngine(t, tcptest.OneLane)
				id := tcptest.OpenSegment(t, e, p.Name)
				var all [3]*core.Batch
				for i := range all {
					local := near[i*length:][:length]
					if i == place {
						local = missing.Memory[:length]
					}
					all[i] = tcptest.Submit(t, e, tcptest.Ask(op, local, id, far[i*length:][:length]))
				}
				missing.AwaitFault(t)
				for i, b := range all {
					if i != place {
						tcptest.Completes(t, b)
					}
				}
				missing.Release(t)
				tcptest.Completes(t, all[place])
			})
		}
	}
}

// A long transfer has pieces for more lanes than there are.
func TestALongTransferWhosePagesDoNotComeLeavesLanesToOthers(t *testing.T) {
	const length, long = 4096, 64 << 20
	for _, op := range tcptest.Opcodes {
		t.Run(op.String(), func(t *testing.T) {
			missing, near, far := hostmemtest.New(t, long), tcptest.Mapped(t, length), tcptest.Mapped(t, long)
			p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
			e := newEngine(t)
			id := tcptest.OpenSegment(t, e, p.Name)
			first := tcptest.Submit(t, e, tcptest.Ask(op, missing.Memory[:long], id, far))
			missing.AwaitFault(t)
			for range 8 * e.Config().LanesPerPeer {
				tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far[:length])))
			}
			missing.Release(t)
			tcptest.Completes(t, first)
		})
	}
}

func TestHoweverManyTransfersHangOthersWhoseMemoryIsThereGoOn(t *testing.T) {
	const hung, short, long = 12, 4096, 4 << 20
	for _, op := range tcptest.Opcodes {
		for _, length := range []int{short, long} {
			for _, sameHost := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v of %d bytes, on one host %v", op, length, sameHost), func(t *testing.T) {
					missing, near, far := hostmemtest.New(t, hung*length), tcptest.Mapped(t, short), tcptest.Mapped(t, hung*length)
					tcptest.Fill(near, 1)
					change := func(c *core.Config) { c.SameHost, c.LanesPerPeer, c.LanesPerLink = sameHost, 2, 2 }
					target, e := newEngine(t, change), newEngine(t, change)
					require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
					id := tcptest.OpenSegment(t, e, target.Name())
					var all [hung]*core.Batch
					for i := range all {
						all[i] = tcptest.Submit(t, e, tcptest.Ask(op, missing.Memory[i*length:][:length], id, far[i*length:][:length]))
					}
					p := onlyPeer(t, e)
					require.Eventually(t, func() bool {
						p.mu.Lock()
						defer p.mu.Unlock()
						return len(p.overtaken) == p.mostOvertaken()
					}, tcptest.Patience, time.Millisecond)
					for range 2 * hung {
						for _, op := range tcptest.Opcodes {
							tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(op, near, id, far[:short])))
						}
					}
					missing.Release(t)
					for _, b := range all {
						tcptest.Completes(t, b)
					}
				})
			}
		}
	}
}

// manyHang has WRITEs of so many bytes each hang, and waits until as many lanes wait for their pages as may be overtaken. Others, whose
// memory is there, end meanwhile.
func manyHang(t *testing.T, hung, length int) (e *core.Engine, p *peer, all []*core.Batch, missing *hostmemtest.Missing) {
	t.Helper()
	missing, near, far := hostmemtest.New(t, hung*length), tcptest.Mapped(t, length), tcptest.Mapped(t, hung*length)
	tcptest.Fill(near, 1)
	change := func(c *core.Config) { c.SameHost, c.LanesPerPeer, c.LanesPerLink, c.SliceSize = false, 2, 2, 16<<10 }
	target, e := newEngine(t, change), newEngine(t, change)
	require.NoError(t, target.Register(hostmem.AddressOf(far), uint64(len(far)), "cpu:0", true))
	id := tcptest.OpenSegment(t, e, target.Name())
	for i := range hung {
		all = append(all, tcptest.Submit(t, e, tcptest.Ask(core.Write, missing.Memory[i*length:][:length], id, far[i*length:][:length])))
	}
	p = onlyPeer(t, e)
	for overtaken := 0; overtaken < p.mostOvertaken(); {
		p.mu.Lock()
		overtaken = len(p.overtaken)
		p.mu.Unlock()
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, near, id, far[:length])))
	}
	return e, p, all, missing
}

// To look at each of them whenever a lane takes something would take longer than all transfers.
func TestThousandsOfTransfersThatHangDoNotDelayTheLanes(t *testing.T) {
	_, _, all, missing := manyHang(t, 4000, 4096)
	missing.Release(t)
	for _, b := range all {
		tcptest.Completes(t, b)
	}
}

func TestTransfersThatAreSetAsideEndWhenTheyAreGivenUp(t *testing.T) {
	const hung = 100
	e, p, all, missing := manyHang(t, hung, 64<<10)
	for _, b := range all[hung/2:] { // no lane waits for their pages
		e.CancelBatch(b)
	}
	for _, b := range all[hung/2:] {
		require.Eventually(t, b.Done, tcptest.Patience, time.Millisecond)
	}
	missing.Release(t)
	for _, b := range all[:hung/2] {
		tcptest.Completes(t, b)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Zero(t, p.queued)
}

// Memory that is touched for the first time may have to be waited for, as far as anybody knows.
func TestWhileSomeTransfersHangOthersTouchMemoryForTheFirstTime(t *testing.T) {
	const length = 8 << 20
	for _, op := range tcptest.Opcodes {
		t.Run(op.String(), func(t *testing.T) {
			e := newEngine(t)
			hung := 2 * e.Config().LanesPerPeer
			missing, far := hostmemtest.New(t, hung*length), tcptest.Mapped(t, hung*length)
			p := tcptest.Perform(t, 2, tcptest.ServeWell, far)
			id := tcptest.OpenSegment(t, e, p.Name)
			var all []*core.Batch
			for i := range hung {
				all = append(all, tcptest.Submit(t, e, tcptest.Ask(op, missing.Memory[i*length:][:length], id, far[i*length:][:length])))
			}
			missing.AwaitFault(t)
			for _, op := range tcptest.Opcodes {
				tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(op, tcptest.Mapped(t, length), id, far[:length])))
			}
			missing.Release(t)
			for _, b := range all {
				tcptest.Completes(t, b)
			}
		})
	}
}
