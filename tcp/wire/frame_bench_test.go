package wire

import "testing"

func BenchmarkFrame(b *testing.B) {
	frame := make([]byte, HeaderSize)
	b.Run("putHeader", func(b *testing.B) {
		b.ReportAllocs()
		for i := uint64(0); b.Loop(); i++ {
			PutHeader(frame, Write, i, 4096, true)
		}
	})
	b.Run("parseHeader", func(b *testing.B) {
		PutHeader(frame, Write, 1<<40, 4096, true)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ParseHeader(frame, false); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("putStatus", func(b *testing.B) {
		b.ReportAllocs()
		for i := uint32(0); b.Loop(); i++ {
			PutStatus(frame, i)
		}
	})
	b.Run("parseStatus", func(b *testing.B) {
		PutStatus(frame, StatusOK)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ParseStatus(frame); err != nil {
				b.Fatal(err)
			}
		}
	})
}
