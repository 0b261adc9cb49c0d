package core

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// registryOf has so many regions of 64 KiB, with as much between one and the next.
func registryOf(b *testing.B, regions int) *Registry {
	m := newRegistry()
	for i := range regions {
		require.NoError(b, m.add(Range{regionAt(i), 64 << 10}, "cpu:0", FullAccess, nil))
	}
	return m
}

func regionAt(i int) uintptr { return uintptr(1<<40 + i*128<<10) }

// scattered is the number of a region for each i, far from that for i-1.
func scattered(i, regions int) int { return i * 7919 % regions }

func BenchmarkRegistry(b *testing.B) {
	for _, regions := range []int{10, 1000, 100000} {
		m := registryOf(b, regions)
		b.Run(fmt.Sprintf("PinRemote/regions=%d", regions), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				r, err := m.PinRemote(uint64(regionAt(scattered(i, regions)))+4096, 4096, Read)
				if err != nil {
					b.Fatal(err)
				}
				r.Unpin()
			}
		})
		b.Run(fmt.Sprintf("pinOverlapping/regions=%d", regions), func(b *testing.B) {
			b.ReportAllocs()
			room := make([]*Region, 0, 2)
			for i := 0; b.Loop(); i++ {
				to := pins{regions: room}
				_, _ = m.pinOverlapping(Range{regionAt(scattered(i, regions)) + 4096, 4096}, &to)
				unpinAll(to.regions)
			}
		})
	}
}
