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
