package hostmem

import (
	"fmt"
	"testing"

	"kvferry/core/clock"
)

// BenchmarkCopy measures what protection from unmapped memory costs: each way to copy, and Go's own copy.
func BenchmarkCopy(b *testing.B) {
	for _, length := range []int{64, 4 << 10, 64 << 10} {
		dst, src := mapped(b, length), mapped(b, length)
		to, from := AddressOf(dst), AddressOf(src)
		var c Copier
		for name, way := range map[string]func() error{
			"Go":      func() error { copy(dst, src); return nil },
			"burst":   func() error { return c.Copy(to, from, uint64(length)) },
			"single":  func() error { c.Renew(); return c.Copy(to, from, uint64(length)) },
			"syscall": func() error { return copyBySyscalls(to, from, uint64(length)) },
			"pipe":    func() error { return copyThroughPipe(to, from, uint64(length)) },
		} {
			b.Run(fmt.Sprintf("%s/bytes=%d", name, length), func(b *testing.B) {
				b.SetBytes(int64(length))
				b.ReportAllocs()
				for b.Loop() {
					if err := way(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkSeen(b *testing.B) {
	for _, length := range []uint64{64, 4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("bytes=%d", length), func(b *testing.B) {
			addr := AddressOf(mapped(b, int(length)))
			now := Now()
			now.Note(addr, length, Writing)
			for b.Loop() {
				if !now.Seen(addr, length, Writing) {
					b.Fatal("what was just noted is not seen")
				}
			}
		})
	}
}

func BenchmarkHandlersAreGos(b *testing.B) {
	for b.Loop() {
		if !handlersAreGos(clock.Now(), 0) {
			b.Fatal("the handlers are not Go's")
		}
	}
}

func BenchmarkReadable(b *testing.B) {
	addr := AddressOf(mapped(b, 4096))
	for b.Loop() {
		Readable(addr, 1)
	}
}

// BenchmarkHeads measures how heads of a cache in blocks of 16 tokens are packed and unpacked, in requests of 128 KiB. The heads
// lie together, or beside as many of others ("apart"), or before the tokens ("HND"). The cache is more than processors' caches
// hold.
func BenchmarkHeads(b *testing.B) {
	const tokens, size, request = 16, 64 << 20, 128 << 10
	cache, buffer := mapped(b, size), make([]byte, request)
	fill(cache, 1)
	for _, run := range []uint64{64, 256, 1024} {
		blocks := request / run / tokens
		for shape, axes := range map[string][2]Axis{
			"together": {{blocks, int64(tokens * run)}, {tokens, int64(run)}},
			"apart":    {{blocks, int64(2 * tokens * run)}, {tokens, int64(2 * run)}},
			"HND":      {{tokens, int64(run)}, {blocks, int64(tokens * run)}},
		} {
			s := Strided{Run: run, Count: 2}
			copy(s.Axes[:], axes[:])
			_, span := s.Bounds()
			for name, way := range map[string]func(*Copier) error{
				"gather":  func(c *Copier) error { return c.Gather(buffer, &s, 0) },
				"scatter": func(c *Copier) error { return c.Scatter(&s, 0, buffer) },
			} {
				b.Run(fmt.Sprintf("%s/%s/run=%d", name, shape, run), func(b *testing.B) {
					var c Copier
					b.SetBytes(request)
					at := uint64(0)
					for b.Loop() {
						if at += span; at+span > size {
							at = 0
						}
						s.Base = AddressOf(cache) + uintptr(at)
						if err := way(&c); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}
