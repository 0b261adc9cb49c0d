package clock

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestClocksNeverGoBack(t *testing.T) {
	for name, read := range map[string]func() int64{
		"Now":       func() int64 { return int64(Now()) },
		"SinceBoot": func() int64 { return int64(SinceBoot()) },
	} {
		last := int64(1)
		for range 1000 {
			now := read()
			require.GreaterOrEqual(t, now, last, name)
			last = now
		}
	}
}
