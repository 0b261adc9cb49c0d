package tcp

import (
	"testing"

	"kvferry/core"
	"kvferry/core/device"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// transportOf is the transport of an engine made by engine.
func transportOf(t testing.TB, e *core.Engine) *Transport {
	t.Helper()
	installed, err := e.Install("tcp", nil)
	require.NoError(t, err)
	return installed.(*Transport)
}

// newEngine is an engine with this transport.
func newEngine(t testing.TB, change ...func(*core.Config)) *core.Engine {
	return tcptest.Engine(t, Open, change...)
}

// engineOn is newEngine for one with memory of the host's devices; nil for none.
func engineOn(t testing.TB, on *device.Host, change ...func(*core.Config)) *core.Engine {
	if on == nil {
		return newEngine(t, change...)
	}
	return tcptest.EngineOn(t, Open, on, change...)
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sameHost are two engines on one host; see tcptest.SameHost.
func sameHost(t testing.TB, length int, change ...func(*core.Config)) (target, e *core.Engine, memory, local []byte, id core.SegmentID) {
	return tcptest.SameHost(t, Open, length, change...)
}
