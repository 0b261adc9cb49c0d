package tcp

import (
	"bytes"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// pools are rows of pages in the memory of an engine and of a target, and some pages that are to move.
type pools struct {
	core.Pages
	near, far []byte
}

// in are the offsets of a page of a row, in near and in far memory.
func (p *pools) in(row, page int) (near, far uint64) {
	r := &p.Rows[row]
	return r.LocalBase + p.Local[page]*r.LocalStride - uint64(hostmem.AddressOf(p.near)),
		r.RemoteBase + p.Remote[page]*r.RemoteStride - uint64(hostmem.AddressOf(p.far))
}

// apply moves the pages between copies of both memories, and returns these.
func (p *pools) apply() (near, far []byte) {
	near, far = slices.Clone(p.near), slices.Clone(p.far)
	for row := range p.Rows {
		for page := range p.Local {
			n, f := p.in(row, page)
			length := p.Rows[row].Length
			if p.Opcode == core.Read {
				copy(near[n:n+length], p.far[f:])
			} else {
				copy(far[f:f+length], p.near[n:])
			}
		}
	}
	return near, far
}

// scatter are the same requests as blocks of regions.
func (p *pools) scatter() *core.Scatter {
	s := &core.Scatter{Opcode: p.Opcode}
	for row := range p.Rows {
		s.Regions = append(s.Regions, core.ScatterRegion{
			LocalBase: uint64(hostmem.AddressOf(p.near)), LocalCapacity: uint64(len(p.near)),
			RemoteBase: uint64(hostmem.AddressOf(p.far)), RemoteCapacity: uint64(len(p.far)), Blocks: uint64(len(p.Local)),
		})
		for page := range p.Local {
			n, f := p.in(row, page)
			s.LocalOffsets, s.RemoteOffsets = append(s.LocalOffsets, n), append(s.RemoteOffsets, f)
			s.Lengths = append(s.Lengths, p.Rows[row].Length)
		}
	}
	return s
}

// randomNumbers are different page numbers, in groups of consecutive ones.
func randomNumbers(r *rand.Rand, groups []int) (numbers []uint64, pages uint64) {
	at := make([]uint64, len(groups))
	for _, i := range r.Perm(len(groups)) {
		pages += uint64(r.IntN(2))
		at[i] = pages
		pages += uint64(groups[i])
	}
	for i, count := range groups {
		for j := range count {
			numbers = append(numbers, at[i]+uint64(j))
		}
	}
	return numbers, pages
}

// randomPools are up to so many rows and pages. Pages of a destination do not overlap.
func randomPools(r *rand.Rand, op core.Opcode, mostRows, mostPages int, memory func(near, far int) ([]byte, []byte)) *pools {
	p := &pools{Pages: core.Pages{Opcode: op}}
	var groups []int
	most := pick(r, 1, 1, 3, 16, 100)
	for pages := 1 + r.IntN(mostPages); pages > 0; pages -= groups[len(groups)-1] {
		groups = append(groups, min(pages, 1+r.IntN(most)))
	}
	var localPages, remotePages uint64
	p.Local, localPages = randomNumbers(r, groups)
	p.Remote, remotePages = randomNumbers(r, groups)
	length := 1 + r.Uint64N(pick[uint64](r, 20, 300, 300, 700))
	var near, far uint64
	rows, regular := 1+r.IntN(mostRows), r.IntN(2) == 0
	localStride, remoteStride := length+pick[uint64](r, 0, 0, length, 13), length+pick[uint64](r, 0, 0, 3*length, 5)
	for range rows {
		if !regular {
			near, far = near+r.Uint64N(100), far+r.Uint64N(100)
		}
		p.Rows = append(p.Rows, core.PageRow{LocalBase: near, LocalStride: localStride, RemoteBase: far, RemoteStride: remoteStride, Length: length})
		near, far = near+localPages*localStride, far+remotePages*remoteStride
	}
	if r.IntN(4) == 0 {
		p.Rows[r.IntN(rows)].Length = 1 + r.Uint64N(length)
	}
	p.near, p.far = memory(int(near)+1, int(far)+1)
	for i := range p.Rows {
		p.Rows[i].LocalBase += uint64(hostmem.AddressOf(p.near))
		p.Rows[i].RemoteBase += uint64(hostmem.AddressOf(p.far))
	}
	tcptest.Fill(p.near, byte(r.Uint32()))
	tcptest.Fill(p.far, byte(r.Uint32()))
	return p
}

// onDevice is an engine with the accelerator.
func onDevice(t *testing.T, a *tcptest.Accelerator) *core.Engine {
	c := core.DefaultConfig()
	c.SameHost = false
	e, err := core.New(core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: c, Log: zap.NewNop(),
		Runtimes: []device.Runtime{a.Runtime()}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.Close() })
	_, err = e.Install("tcp", Open)
	require.NoError(t, err)
	return e
}

// TestSmallPagesAndBlocksMoveEachByteAndTouchNoOther moves random pages, over all ways, to peers that take strided requests and to
// others, of memory whose descriptor says what is allowed, within a process, and from and to devices.
func TestSmallPagesAndBlocksMoveEachByteAndTouchNoOther(t *testing.T) {
	none := func(*core.Config) {}
	for name, test := range map[string]struct {
		change     func(*core.Config)
		own        bool
		few        bool // each request has a connection of its own
		restricted bool // the descriptor is asked about each request
		device     string
	}{
		"TCP":                   {change: none},
		"one host":              {change: tcptest.OnOneHost},
		"version 1":             {change: tcptest.SpeakV1, few: true},
		"a connection each":     {change: tcptest.WithoutPool, few: true},
		"one lane":              {change: tcptest.OneLane},
		"short slices":          {change: func(c *core.Config) { c.SliceSize = 1000 }},
		"some access":           {change: none, restricted: true},
		"itself":                {change: none, own: true},
		"from and to a device":  {change: none, device: "near"},
		"a device at the other": {change: none, device: "far"},
	} {
		t.Run(name, func(t *testing.T) {
			rounds := uint64(12)
			if test.device != "" {
				rounds = 6
			}
			for seed := range rounds {
				r := rand.New(rand.NewPCG(seed, 5))
				rows, pages := 40, 150
				if test.few {
					rows, pages = 3, 5
				}
				target, e := newEngine(t, test.change), newEngine(t, test.change)
				memory := func(near, far int) ([]byte, []byte) { return tcptest.Mapped(t, near), tcptest.Mapped(t, far) }
				if test.device != "" {
					a := tcptest.Accelerate(t, tcptest.Blocks(4, staging.Granule))
					with := onDevice(t, a)
					if test.device == "near" {
						e = with
						memory = func(near, far int) ([]byte, []byte) { return a.Memory(near), tcptest.Mapped(t, far) }
					} else {
						target = with
						memory = func(near, far int) ([]byte, []byte) { return tcptest.Mapped(t, near), a.Memory(far) }
					}
				}
				if test.own {
					target = e
				}
				p := randomPools(r, core.Opcode(r.IntN(2)), rows, pages, memory)
				access := core.FullAccess
				if test.restricted {
					access = pick(r, core.RemoteRead, core.RemoteWrite)
				}
				register(t, target, p.far, access)
				if test.device == "near" {
					register(t, e, p.near, core.FullAccess)
				}
				if test.own {
					p.Target = core.LocalSegment
				} else {
					p.Target = tcptest.OpenSegment(t, e, target.Name())
				}
				near, far := p.apply()
				if !access.Allows(p.Opcode) {
					near, far = slices.Clone(p.near), slices.Clone(p.far)
				}
				var b *core.Batch
				var err error
				if !test.own && r.IntN(3) == 0 {
					b, err = e.SubmitScatter(target.Name(), p.scatter())
				} else {
					b, err = e.SubmitPages(&p.Pages, pick(r, 0, 0, 1+r.IntN(p.Count())))
				}
				require.NoError(t, err)
				tcptest.Wait(t, b)
				if access.Allows(p.Opcode) {
					require.NoError(t, b.Err(), "seed %d", seed)
					require.EqualValues(t, p.Count(), b.Summary().Completed, "seed %d", seed)
				} else {
					require.ErrorIs(t, b.Err(), core.ErrForbidden, "seed %d", seed)
					require.Zero(t, b.Summary().Completed)
				}
				require.True(t, bytes.Equal(near, p.near), "seed %d", seed)
				require.True(t, bytes.Equal(far, p.far), "seed %d", seed)
				require.NoError(t, e.FreeBatch(b))
				require.NoError(t, e.Close())
				require.NoError(t, target.Close())
			}
		})
	}
}

// regularPools are 20 rows of 300 pages of 64 bytes, between two engines. The numbers of the pages have no order.
func regularPools(t *testing.T, op core.Opcode, change ...func(*core.Config)) (target, e *core.Engine, p *pools) {
	const rows, pages, length = 20, 300, 64
	target, e = newEngine(t, change...), newEngine(t, change...)
	size := rows * pages * 2 * length
	size += -size & (os.Getpagesize() - 1)
	p = &pools{near: tcptest.Mapped(t, size), far: tcptest.Mapped(t, size)}
	r := rand.New(rand.NewPCG(1, 7))
	for i, j := range r.Perm(pages) {
		p.Local, p.Remote = append(p.Local, uint64(i)), append(p.Remote, uint64(j))
	}
	for row := range uint64(rows) {
		at := row * pages * 2 * length
		p.Rows = append(p.Rows, core.PageRow{
			LocalBase: uint64(hostmem.AddressOf(p.near)) + at, LocalStride: 2 * length,
			RemoteBase: uint64(hostmem.AddressOf(p.far)) + at, RemoteStride: 2 * length, Length: length,
		})
	}
	tcptest.Fill(p.near, 1)
	tcptest.Fill(p.far, 2)
	p.Opcode = op
	p.Target = tcptest.OpenSegment(t, e, target.Name())
	return target, e, p
}

func (p *pools) submit(t *testing.T, e *core.Engine) *core.Batch {
	b, err := e.SubmitPages(&p.Pages, 0)
	require.NoError(t, err)
	return b
}

func TestPagesOfLayersAtRegularPlacesTakeFewRequests(t *testing.T) {
	for _, sameHost := range []bool{false, true} {
		for _, op := range tcptest.Opcodes {
			target, e, p := regularPools(t, op, func(c *core.Config) { c.SameHost = sameHost })
			register(t, target, p.far, core.FullAccess)
			near, far := p.apply()
			b := p.submit(t, e)
			tcptest.Completes(t, b)
			require.True(t, bytes.Equal(near, p.near))
			require.True(t, bytes.Equal(far, p.far))
			require.EqualValues(t, p.Count(), e.Stats().Initiator[0].Read.Requests+e.Stats().Initiator[0].Write.Requests)
			at := target.Stats().Target[0]
			require.LessOrEqual(t, at.Read.Requests+at.Write.Requests, uint64(len(p.Local)), "one for each page of all rows")
		}
	}
}

// TestAPageThatThePeerDoesNotTakeFailsAloneAndIsNamed has one page at the end of memory that is registered, among pages that
// go together with it.
func TestAPageThatThePeerDoesNotTakeFailsAloneAndIsNamed(t *testing.T) {
	for _, op := range tcptest.Opcodes {
		target, e, p := regularPools(t, op)
		bad := 11*len(p.Local) + 17
		_, at := p.in(11, 17)
		cut := int(at) + 10
		register(t, target, p.far[:cut], core.FullAccess)
		register(t, target, p.far[cut:], core.FullAccess)
		b := p.submit(t, e)
		tcptest.FailsOnly(t, b, bad)
		whole := b.Err()

		alone := p.Pages
		alone.Rows, alone.Local, alone.Remote = p.Rows[11:12], p.Local[17:18], p.Remote[17:18]
		b, err := e.SubmitPages(&alone, 0)
		require.NoError(t, err)
		tcptest.FailsOnly(t, b, 0)
		require.EqualError(t, whole, b.Err().Error(), "as if it were alone")
	}
}

func TestAPageWhoseLocalMemoryIsGoneFailsAlone(t *testing.T) {
	for _, op := range tcptest.Opcodes {
		target, e, p := regularPools(t, op)
		register(t, target, p.far, core.FullAccess)
		hole := os.Getpagesize()
		tcptest.Unmap(t, p.near[8*hole:9*hole])
		var failing []int
		for row := range p.Rows {
			for page := range p.Local {
				near, _ := p.in(row, page)
				if int(near+p.Rows[row].Length) > 8*hole && int(near) < 9*hole {
					failing = append(failing, row*len(p.Local)+page)
				}
			}
		}
		require.NotEmpty(t, failing)
		b := p.submit(t, e)
		tcptest.FailsOnly(t, b, failing...)
		require.ErrorContains(t, b.Err(), "local memory cannot be accessed")
		require.ErrorContains(t, b.Err(), "of 64 bytes")
	}
}

func TestPagesArriveWhileConnectionsBreak(t *testing.T) {
	for _, op := range tcptest.Opcodes {
		target, e, p := regularPools(t, op, func(c *core.Config) { c.RetryCount = 127 })
		register(t, target, p.far, core.FullAccess)
		stop := killSome(transportOf(t, target), transportOf(t, e))
		defer stop()
		for round := range 10 {
			for _, memory := range [][]byte{p.near, p.far} {
				tcptest.Fill(memory, byte(round)+memory[0])
			}
			near, far := p.apply()
			b := p.submit(t, e)
			tcptest.Completes(t, b)
			require.True(t, bytes.Equal(near, p.near), "round %d", round)
			require.True(t, bytes.Equal(far, p.far), "round %d", round)
			require.NoError(t, e.FreeBatch(b))
		}
		stop()
	}
}
