package tcp

import (
	"fmt"
	"testing"

	"kvferry/core"
)

// BenchmarkSecurity moves batches of long blocks over TCP, with a secret and without: compare the ratio.
func BenchmarkSecurity(b *testing.B) {
	path := secretFile(b, newSecret())
	for _, size := range []struct {
		name             string
		requests, length int
	}{{"64KiBx64", 64, 64 << 10}, {"1MiBx32", 32, 1 << 20}} {
		for _, op := range []core.Opcode{core.Write, core.Read} {
			for _, way := range []struct {
				name   string
				change func(*core.Config)
			}{{"plain", func(*core.Config) {}}, {"TLS", withSecret(path, "")}} {
				b.Run(fmt.Sprintf("%s/%v/%s", size.name, op, way.name), func(b *testing.B) {
					l := startLoopback(b, op, size.requests, size.length, way.change)
					l.transfer(b) // connects
					b.SetBytes(int64(size.requests * size.length))
					b.ReportAllocs()
					for b.Loop() {
						l.transfer(b)
					}
				})
			}
		}
	}
}
