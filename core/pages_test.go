package core_test

import (
	"math"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/status"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// twoPools are pages 0, 3 and 1 of two pools, which go to pages 5, 4 and 2 of the peer's.
func twoPools(p *pair) *core.Pages {
	return &core.Pages{
		Opcode: core.Write, Target: p.segment, Local: []uint64{0, 3, 1}, Remote: []uint64{5, 4, 2},
		Rows: []core.PageRow{
			{LocalBase: 0x10000, LocalStride: 0x100, RemoteBase: 0x20000, RemoteStride: 0x200, Length: 0x80},
			{LocalBase: 0x50000, LocalStride: 0, RemoteBase: 0x60000, RemoteStride: 1, Length: 7},
		},
	}
}

// requestsOf are the requests of all works that the transport holds.
func requestsOf(transport *transporttest.Transport) (all []core.Request) {
	for _, h := range transport.Held() {
		for i := h.Head; i >= 0; i = h.Tasks[i].Next {
			all = append(all, h.Tasks[i].Request)
		}
	}
	return all
}

func TestPagesAreRowByRowTheRangesThatTheirNumbersName(t *testing.T) {
	p := startPair(t, nil)
	b, err := p.SubmitPages(twoPools(p), 0)
	require.NoError(t, err)

	write := func(local uintptr, remote, length uint64) core.Request {
		return core.Request{Opcode: core.Write, Local: local, Target: p.segment, Remote: remote, Length: length}
	}
	require.Equal(t, []core.Request{
		write(0x10000, 0x20a00, 0x80), write(0x10300, 0x20800, 0x80), write(0x10100, 0x20400, 0x80),
		write(0x50000, 0x60005, 7), write(0x50000, 0x60004, 7), write(0x50000, 0x60002, 7),
	}, requestsOf(p.transport))
	require.EqualValues(t, 3*0x80+3*7, b.Bytes())
	p.transport.SettleAll(nil)
	require.Equal(t, core.Summary{Tasks: 6, Completed: 6, Bytes: b.Bytes()}, b.Summary())
}

func TestPagesInRegisteredMemoryAreTheSameRangesAndKeepItFromGoingAway(t *testing.T) {
	for name, regions := range map[string][]core.Range{
		"a region that holds a row":       {{Addr: 0x10000, Length: 0x1000}},
		"a region that holds all rows":    {{Addr: 0x10000, Length: 0x50000}},
		"a region that holds some pages":  {{Addr: 0x10000, Length: 0x200}},
		"two regions that hold one row":   {{Addr: 0x10000, Length: 0x200}, {Addr: 0x10200, Length: 0x1000}},
		"regions that hold a row each":    {{Addr: 0x10000, Length: 0x1000}, {Addr: 0x50000, Length: 7}},
		"a region that ends within a row": {{Addr: 0x8000, Length: 0x8001}},
	} {
		for _, limit := range []int{0, 5} {
			t.Run(name, func(t *testing.T) {
				p := startPair(t, nil)
				wanted := requestsOfWhole(t, p, twoPools(p))
				for _, r := range regions {
					require.NoError(t, p.Register(r.Addr, r.Length, "cpu:0", true)) // never touched
				}
				b, err := p.SubmitPages(twoPools(p), limit)
				require.NoError(t, err)
				first := len(wanted)
				if limit > 0 {
					first = limit
				}
				eventually(t, func() bool { return len(requestsOf(p.transport)) == first })
				require.Equal(t, wanted[:first], requestsOf(p.transport))
				p.transport.SettleAll(nil)
				if limit > 0 {
					eventually(t, func() bool { return len(requestsOf(p.transport)) == len(wanted)-limit })
					require.Equal(t, wanted[limit:], requestsOf(p.transport))
					p.transport.SettleAll(nil)
				}
				wait(t, b)
				require.NoError(t, b.Err())
				require.NoError(t, p.Unregister(regions[0].Addr), "nothing uses it any more")
			})
		}
	}
}

func TestARegionThatPagesLieInIsInUseWhileTheyAreUnderWay(t *testing.T) {
	p := startPairWith(t, &transporttest.Transport{KeepAborted: true}, nil)
	p.SetGrace(0)
	p.SetEnding(0)
	require.NoError(t, p.Register(0x10000, 0x50000, "cpu:0", true)) // never touched
	b, err := p.SubmitPages(twoPools(p), 0)
	require.NoError(t, err)
	require.ErrorIs(t, p.Unregister(0x10000), core.ErrInUse)
	p.SetEnding(core.EndingTime)
	p.transport.SettleAll(nil)
	wait(t, b)
	require.NoError(t, p.Unregister(0x10000))
}

func TestPagesUpToALimitAreUnderWayAtATime(t *testing.T) {
	p := startPair(t, nil)
	pages := twoPools(p)
	all := requestsOfWhole(t, p, pages)
	b, err := p.SubmitPages(pages, 4)
	require.NoError(t, err)
	clear(pages.Local) // the caller's again
	clear(pages.Rows)

	require.False(t, b.Done())
	require.EqualValues(t, 6, b.Summary().Tasks)
	var seen []core.Request
	for _, count := range []int{4, 2} {
		eventually(t, func() bool { return len(requestsOf(p.transport)) == count })
		seen = append(seen, requestsOf(p.transport)...)
		p.transport.SettleAll(nil)
	}
	wait(t, b)
	require.NoError(t, b.Err())
	require.Equal(t, all, seen)
	require.EqualValues(t, 6, b.Summary().Completed)
	require.NoError(t, p.FreeBatch(b))
}

// requestsOfWhole are the requests of pages that are submitted at once.
func requestsOfWhole(t *testing.T, p *pair, pages *core.Pages) []core.Request {
	b, err := p.SubmitPages(pages, 0)
	require.NoError(t, err)
	all := requestsOf(p.transport)
	p.transport.SettleAll(nil)
	require.NoError(t, p.FreeBatch(b))
	return all
}

func TestAfterAPartOfThePagesHasFailedTheRestIsNotSubmitted(t *testing.T) {
	p := startPair(t, nil)
	b, err := p.SubmitPages(twoPools(p), 2)
	require.NoError(t, err)
	eventually(t, func() bool { return len(p.transport.Held()) == 1 })
	p.transport.SettleAll(errBroken)

	wait(t, b)
	require.ErrorIs(t, b.Err(), errBroken)
	require.Equal(t, core.Summary{Tasks: 6, Failed: 6}, b.Summary())
	require.Equal(t, 1, p.transport.Calls().Submit)
	require.NoError(t, p.FreeBatch(b))
}

func TestADiscardedBatchOfPagesIsFedNoFurther(t *testing.T) {
	p := startPair(t, nil)
	b, err := p.SubmitPages(twoPools(p), 2)
	require.NoError(t, err)
	eventually(t, func() bool { return len(p.transport.Held()) == 1 })

	require.NoError(t, p.DiscardBatch(b))
	require.ErrorIs(t, b.Err(), core.ErrDiscarded)
	require.Equal(t, 1, p.transport.Calls().Submit)
}

func TestACanceledBatchIsUnderWayUntilItsMemoryIsNotTouchedAnyMore(t *testing.T) {
	p := startPairWith(t, &transporttest.Transport{KeepAborted: true}, nil)
	b, err := p.SubmitPages(twoPools(p), 2)
	require.NoError(t, err)
	eventually(t, func() bool { return len(p.transport.Held()) == 1 })

	p.CancelBatch(b)
	require.False(t, b.Done())
	requireCode(t, status.BatchBusy, p.FreeBatch(b))
	p.transport.SettleAll(core.ErrDiscarded)
	wait(t, b)
	require.ErrorIs(t, b.Err(), core.ErrDiscarded)
	require.EqualValues(t, 6, b.Summary().Failed)
	require.NoError(t, p.FreeBatch(b))
}

func TestClosingAnEngineEndsWhatFeedsItsBatches(t *testing.T) {
	p := startPair(t, nil)
	b, err := p.SubmitPages(twoPools(p), 1)
	require.NoError(t, err)
	require.NoError(t, p.Close())
	require.True(t, b.Done())
	require.ErrorIs(t, b.Err(), core.ErrClosed)
	_, err = p.SubmitPages(twoPools(p), 1)
	require.ErrorIs(t, err, core.ErrClosed)
}

func TestUnregisteringMemoryEndsWhatFeedsFromIt(t *testing.T) {
	p := startPair(t, nil)
	p.SetGrace(0)
	memory := pages(t, 1<<16)
	require.NoError(t, p.Register(at(memory), 1<<16, "*", true))
	many := twoPools(p)
	many.Rows[0].LocalBase = uint64(at(memory))
	b, err := p.SubmitPages(many, 1)
	require.NoError(t, err)
	eventually(t, func() bool { return len(p.transport.Held()) == 1 })
	require.NoError(t, p.Unregister(at(memory)))
	wait(t, b)
	require.Equal(t, 1, p.transport.Calls().Submit)
}

func TestUnregisteringMemoryEndsWhatIsToBeFedFromItLater(t *testing.T) {
	p := startPair(t, nil)
	p.SetGrace(0)
	memory := pages(t, 1<<16)
	require.NoError(t, p.Register(at(memory), 1<<16, "*", true))
	many := twoPools(p)
	many.Rows[1].LocalBase = uint64(at(memory))
	b, err := p.SubmitPages(many, 1)
	require.NoError(t, err)
	eventually(t, func() bool { return len(p.transport.Held()) == 1 }) // of the first row

	require.NoError(t, p.Unregister(at(memory)))
	wait(t, b)
	require.Equal(t, 1, p.transport.Calls().Submit)
	requireCode(t, status.AddressNotRegistered, b.Err())
}

func TestWhatAreNoPagesIsRefused(t *testing.T) {
	p := startPair(t, nil)
	for name, spoil := range map[string]func(*core.Pages){
		"lengths":               func(g *core.Pages) { g.Local = g.Local[1:] },
		"no length":             func(g *core.Pages) { g.Rows[1].Length = 0 },
		"negative local stride": func(g *core.Pages) { g.Rows[0].LocalStride = math.MaxUint64 },
		"negative stride":       func(g *core.Pages) { g.Rows[0].RemoteStride = 1 << 63 },
		"product beyond 64 bit": func(g *core.Pages) { g.Local[1] = 1 << 60 },
		"sum beyond 64 bit":     func(g *core.Pages) { g.Rows[0].RemoteBase = math.MaxUint64 - 0x100 },
		"end beyond 64 bit":     func(g *core.Pages) { g.Rows[1].LocalBase = math.MaxUint64 - 5 },
		"length beyond 64 bit":  func(g *core.Pages) { g.Rows[1].Length = math.MaxUint64 },
		"opcode":                func(g *core.Pages) { g.Opcode = 2 },
		"target":                func(g *core.Pages) { g.Target = math.MaxInt32 },
	} {
		t.Run(name, func(t *testing.T) {
			bad := twoPools(p)
			spoil(bad)
			_, err := p.SubmitPages(bad, 0)
			requireCode(t, status.InvalidArgument, err)
		})
	}
	require.Zero(t, p.transport.Calls().Submit)
}

func TestNoPagesAreABatchThatHasCompleted(t *testing.T) {
	p := startPair(t, nil)
	for _, empty := range []func(*core.Pages){
		func(g *core.Pages) { g.Local, g.Remote = nil, nil },
		func(g *core.Pages) { g.Rows = nil },
	} {
		none := twoPools(p)
		empty(none)
		b, err := p.SubmitPages(none, 1)
		require.NoError(t, err)
		require.True(t, b.Done())
		require.NoError(t, b.Err())
	}
}

func TestPagesInPartsAreRefusedAtOnceForWhatNoPartCouldDo(t *testing.T) {
	for name, spoil := range map[string]func(*core.Pages){
		"an opcode that is none":       func(q *core.Pages) { q.Opcode = 7 },
		"a segment that is not opened": func(q *core.Pages) { q.Target += 1000 },
	} {
		t.Run(name, func(t *testing.T) {
			p := startPair(t, nil)
			pages := twoPools(p)
			spoil(pages)
			_, err := p.SubmitPages(pages, 2)
			requireCode(t, status.InvalidArgument, err)
			require.Empty(t, p.transport.Held())
		})
	}
	alone := startEngine(t, metadatatest.NewDirectory(), nil)
	_, err := alone.SubmitPages(&core.Pages{
		Opcode: core.Write, Target: 5, Local: []uint64{1, 2}, Remote: []uint64{1, 2}, Rows: []core.PageRow{{Length: 1}},
	}, 1)
	requireCode(t, status.NotSupportedTransport, err)
}

// layers are so many rows at a constant distance on each side, and pages in groups of two whose order is another on each side.
func layers(p *pair, rows int) *core.Pages {
	pages := &core.Pages{
		Opcode: core.Write, Target: p.segment,
		Local: []uint64{4, 5, 0, 1, 8, 9, 2, 3}, Remote: []uint64{0, 1, 6, 7, 2, 3, 20, 21},
	}
	for i := range uint64(rows) {
		pages.Rows = append(pages.Rows, core.PageRow{
			LocalBase: 0x10000 + i*0x1000, LocalStride: 0x80, RemoteBase: 0x200000 + i*0x3000, RemoteStride: 0x100, Length: 0x40,
		})
	}
	return pages
}

func TestPagesOfRegularRowsGoColumnByColumnAndKeepTheirNumbers(t *testing.T) {
	const rows = 8
	for name, region := range map[string][]core.Range{
		"memory that is not registered": nil,
		"one region":                    {{Addr: 0x10000, Length: 0x10000}},
		"a region for some rows":        {{Addr: 0x10000, Length: 0x1000}, {Addr: 0x11000, Length: 0x1000}, {Addr: 0x12000, Length: 0x8000}},
	} {
		t.Run(name, func(t *testing.T) {
			p := startPair(t, nil)
			for _, r := range region {
				require.NoError(t, p.Register(r.Addr, r.Length, "cpu:0", true)) // never touched
			}
			pages := layers(p, rows)
			b, err := p.SubmitPages(pages, 0)
			require.NoError(t, err)
			var want []core.Request
			for group := 0; group < len(pages.Local); group += 2 {
				for row := range pages.Rows {
					want = append(want, requestOf(pages, row, group), requestOf(pages, row, group+1))
				}
			}
			require.Equal(t, want, requestsOf(p.transport))

			p.transport.Held()[0].Settle(2*0x40, 0x40, errBroken) // the first page of the second row
			state, _, err := b.Status(len(pages.Local))
			require.NoError(t, err)
			require.Equal(t, core.Failed, state, "the task of that page and row")
		})
	}
}

func TestOtherPagesGoRowByRow(t *testing.T) {
	for name, change := range map[string]func(*core.Pages){
		"few rows":       func(p *core.Pages) { p.Rows = p.Rows[:7] },
		"long pages":     func(p *core.Pages) { p.Rows[3].Length = 0x1000 },
		"two lengths":    func(p *core.Pages) { p.Rows[3].Length = 0x20 },
		"irregular rows": func(p *core.Pages) { p.Rows[1].LocalBase, p.Rows[4].RemoteBase, p.Rows[6].LocalBase = 0, 0, 0 },
		"one group":      func(p *core.Pages) { p.Local, p.Remote = numbers(5, 20), numbers(7, 20) },
	} {
		t.Run(name, func(t *testing.T) {
			p := startPair(t, nil)
			pages := layers(p, 8)
			change(pages)
			_, err := p.SubmitPages(pages, 0)
			require.NoError(t, err)
			var want []core.Request
			for row := range pages.Rows {
				for page := range pages.Local {
					want = append(want, requestOf(pages, row, page))
				}
			}
			require.Equal(t, want, requestsOf(p.transport))
		})
	}
}

// requestOf is the request for a page of a row.
func requestOf(p *core.Pages, row, page int) core.Request {
	r := p.Rows[row]
	return core.Request{
		Opcode: p.Opcode, Target: p.Target, Length: r.Length,
		Local: uintptr(r.LocalBase + p.Local[page]*r.LocalStride), Remote: r.RemoteBase + p.Remote[page]*r.RemoteStride,
	}
}

// numbers are so many numbers in a row.
func numbers(first uint64, count int) (all []uint64) {
	for i := range count {
		all = append(all, first+uint64(i))
	}
	return all
}
