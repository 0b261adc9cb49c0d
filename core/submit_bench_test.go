package core_test

import (
	"fmt"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata/metadatatest"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// atOnce is a transport for which all works are done as soon as it gets them.
type atOnce struct{ transporttest.Transport }

func (*atOnce) Submit(works ...*core.Work) {
	for _, w := range works {
		w.Settle(w.Head, 0, w.Bytes, nil)
	}
}

// prompt is an engine with that transport, and requests for it.
type prompt struct {
	*core.Engine
	requests []core.Request
}

// startPrompt makes 4 KiB WRITEs in turn from so many registered regions of local memory to so many peers.
func startPrompt(t testing.TB, requests, regions, peers int) *prompt {
	t.Helper()
	const length, apart = 4096, 1 << 20
	directory := metadatatest.NewDirectory()
	p := &prompt{Engine: startEngine(t, directory, nil), requests: make([]core.Request, requests)}
	transport := &atOnce{}
	_, err := p.Install("fake", func(*core.Engine) (core.Transport, error) { return transport, nil })
	require.NoError(t, err)
	memory := at(pages(t, max(regions, 1)*apart))
	for i := range regions {
		require.NoError(t, p.Register(memory+uintptr(i*apart), apart/2, "cpu:0", true))
	}
	var segments []core.SegmentID
	for range peers {
		segments = append(segments, open(t, p.Engine, startPeer(t, directory).Name()))
	}
	for i := range p.requests {
		p.requests[i] = core.Request{
			Opcode: core.Write, Local: memory + uintptr(i%max(regions, 1)*apart), Target: segments[i%peers],
			Remote: uint64(2 * i * length), Length: length,
		}
	}
	return p
}

// transfer is the whole life of a batch.
func (p *prompt) transfer(t testing.TB) {
	batch, err := p.AllocateBatch(len(p.requests))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Submit(batch, p.requests, nil); err != nil {
		t.Fatal(err)
	}
	if !batch.Done() || batch.Err() != nil {
		t.Fatal("the batch is not done", batch.Err())
	}
	if err := p.FreeBatch(batch); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkSubmit(b *testing.B) {
	for _, regions := range []int{1, 160} {
		for _, requests := range []int{1, 64, 4096} {
			b.Run(fmt.Sprintf("regions=%d/requests=%d", regions, requests), func(b *testing.B) {
				p := startPrompt(b, requests, regions, 1)
				b.ReportAllocs()
				for b.Loop() {
					p.transfer(b)
				}
			})
		}
	}
}

// BenchmarkSubmitRanges is 1,000 pages of 20 pools: as arrays of ranges, and as pages.
func BenchmarkSubmitRanges(b *testing.B) {
	const pageCount, rows, size = 1000, 20, 4096
	p := startPrompt(b, 1, 1, 1)
	region := uint64(at(pages(b, rows*pageCount*size)))
	require.NoError(b, p.Register(uintptr(region), rows*pageCount*size, "cpu:0", true))
	given := &core.Pages{Opcode: core.Write, Target: p.requests[0].Target}
	for i := range uint64(pageCount) {
		given.Local, given.Remote = append(given.Local, i*7%pageCount), append(given.Remote, i*11%pageCount)
	}
	for i := range uint64(rows) {
		base := region + i*pageCount*size
		given.Rows = append(given.Rows, core.PageRow{LocalBase: base, LocalStride: size, RemoteBase: base, RemoteStride: size, Length: size})
	}
	arrays := &core.Arrays{Opcode: given.Opcode, Target: given.Target}
	for _, r := range given.Rows {
		for i := range given.Local {
			arrays.Local = append(arrays.Local, r.LocalBase+given.Local[i]*size)
			arrays.Remote = append(arrays.Remote, r.RemoteBase+given.Remote[i]*size)
			arrays.Lengths = append(arrays.Lengths, size)
		}
	}
	b.Run("as=arrays", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			batch, err := p.AllocateBatch(len(arrays.Local))
			if err == nil {
				err = p.SubmitArrays(batch, arrays, nil)
			}
			if err != nil || p.FreeBatch(batch) != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("as=pages", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			batch, err := p.SubmitPages(given, 0)
			if err != nil || p.FreeBatch(batch) != nil {
				b.Fatal(err)
			}
		}
	})
}
