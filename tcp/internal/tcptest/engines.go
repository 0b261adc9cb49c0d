package tcptest

import (
	"slices"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/device"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// waits are of the engines that Engine makes.
var waits core.Waits

// Waits sets for how long the engines wait that the test makes from now on. No test runs beside it.
func Waits(t testing.TB, w core.Waits) {
	waits = w
	t.Cleanup(func() { waits = core.Waits{} })
}

// Engine is an engine that has a transport made by open, if that is not nil. It stands for an engine on another host.
func Engine(t testing.TB, open func(*core.Engine) (core.Transport, error), change ...func(*core.Config)) *core.Engine {
	t.Helper()
	return EngineOn(t, open, nil, change...)
}

// EngineOn is Engine for one that knows the devices of a runtime; nil for none.
func EngineOn(t testing.TB, open func(*core.Engine) (core.Transport, error), on device.Runtime, change ...func(*core.Config)) *core.Engine {
	t.Helper()
	config := core.DefaultConfig()
	config.SameHost = false // engines stand for those of several hosts
	for _, f := range change {
		f(&config)
	}
	options := core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: config, Log: zap.NewNop(), Waits: waits}
	if on != nil {
		options.Runtimes = []device.Runtime{on}
	}
	e, err := core.New(options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.Close() })
	_, err = e.Install("tcp", open)
	require.NoError(t, err)
	return e
}

func OpenSegment(t testing.TB, e *core.Engine, name string) core.SegmentID {
	t.Helper()
	id, err := e.OpenSegment(name)
	require.NoError(t, err)
	return id
}

// Ask is a request that moves all of local.
func Ask(op core.Opcode, local []byte, id core.SegmentID, remote []byte) core.Request {
	return core.Request{Opcode: op, Local: AddressOf(local), Target: id, Remote: uint64(AddressOf(remote)), Length: uint64(len(local))}
}

// Scattered are requests for n blocks of a size, none of which is adjacent to another.
func Scattered(op core.Opcode, local []byte, id core.SegmentID, remote []byte, n, size int) []core.Request {
	reqs := make([]core.Request, n)
	for i := range reqs {
		at := i * (size + 1)
		reqs[i] = Ask(op, local[at:at+size], id, remote[at:at+size])
	}
	return reqs
}

func Submit(t testing.TB, e *core.Engine, reqs ...core.Request) *core.Batch {
	t.Helper()
	b, err := e.AllocateBatch(len(reqs))
	require.NoError(t, err)
	require.NoError(t, e.Submit(b, reqs, nil))
	return b
}

func Wait(t testing.TB, b *core.Batch) {
	t.Helper()
	done := make(chan struct{})
	b.OnDone(func() { close(done) })
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("the batch does not end: %+v", b.Summary())
	}
}

// States are the tasks' final states.
func States(t testing.TB, b *core.Batch) []core.State {
	t.Helper()
	Wait(t, b)
	all := make([]core.State, b.Summary().Tasks)
	for i := range all {
		var err error
		all[i], _, err = b.Status(i)
		require.NoError(t, err)
	}
	return all
}

// Completes checks that all of a batch does.
func Completes(t testing.TB, b *core.Batch) {
	t.Helper()
	Wait(t, b)
	require.NoError(t, b.Err())
	require.Equal(t, b.Summary().Tasks, b.Summary().Completed)
}

// FailsOnly checks that the tasks with these numbers fail and the others complete.
func FailsOnly(t testing.TB, b *core.Batch, failing ...int) {
	t.Helper()
	for i, state := range States(t, b) {
		if slices.Contains(failing, i) {
			require.Equal(t, core.Failed, state, "task %d", i)
		} else {
			require.Equal(t, core.Completed, state, "task %d; first error: %v", i, b.Err())
		}
	}
}

// Returns fails the test when f does not return.
func Returns(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(Patience):
		require.Fail(t, what+" does not return")
	}
}

// SameHost is an engine with registered memory and the bytes of it, and another engine that has opened it.
func SameHost(t testing.TB, open func(*core.Engine) (core.Transport, error), length int, change ...func(*core.Config)) (target, e *core.Engine, memory, local []byte, id core.SegmentID) {
	t.Helper()
	target, e = Engine(t, open, OnOneHost), Engine(t, open, append([]func(*core.Config){OnOneHost}, change...)...)
	memory, local = Mapped(t, length), Mapped(t, length)
	Fill(memory, 1)
	require.NoError(t, target.Register(AddressOf(memory), uint64(length), "cpu:0", true))
	return target, e, memory, local, OpenSegment(t, e, target.Name())
}

// OneLane leaves the initiator no choice of connections.
func OneLane(c *core.Config) { c.LanesPerPeer = 1 }

// Impatient makes the initiator give up soon.
func Impatient(c *core.Config) {
	c.ProgressTimeout, c.StatusTimeout = 200*time.Millisecond, 200*time.Millisecond
}

func FewRetries(c *core.Config) { c.RetryCount = 2 }

func SpeakV1(c *core.Config) { c.ForceProtoV1 = true }

func WithoutPool(c *core.Config) { c.ConnectionPool = false }

func OnOneHost(c *core.Config) { c.SameHost = true }

// Ways are the three ways to reach a peer.
var Ways = []struct {
	Name   string
	Config func(*core.Config)
}{
	{"lanes", func(*core.Config) {}},
	{"a connection per request", WithoutPool},
	{"version 1", SpeakV1},
}

// Opcodes are both of them.
var Opcodes = []core.Opcode{core.Write, core.Read}
