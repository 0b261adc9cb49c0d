package client

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/tcp/internal/tcptest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func newSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:]) + "\n"
}

// secretFile is a file with secrets.
func secretFile(t testing.TB, secrets string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte(secrets), 0o600))
	return path
}

// replace writes a new file and renames it.
func replace(t testing.TB, path, secrets string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+".new", []byte(secrets), 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

// withSecret has an engine use the secrets in a file, on three lanes.
func withSecret(path string) func(*core.Config) {
	return func(c *core.Config) {
		c.Security.SecretFile = path
		c.LanesPerPeer, c.LanesPerLink, c.SliceSize = 3, 3, 64<<10
	}
}

// busy are two engines, one of which moves memory of the other one all the time.
type busy struct {
	target, e *core.Engine
	stop      func() (rounds int)
	rounds    *atomic.Int64
}

func keepBusy(t *testing.T, targetFile, file string, change ...func(*core.Config)) busy {
	t.Helper()
	target := newEngine(t, append(change, withSecret(targetFile))...)
	e := newEngine(t, append(change, withSecret(file))...)
	memory := tcptest.Mapped(t, 2<<20)
	require.NoError(t, target.Register(hostmem.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
	local, back := tcptest.Mapped(t, len(memory)), tcptest.Mapped(t, len(memory))
	id := tcptest.OpenSegment(t, e, target.Name())
	var rounds atomic.Int64
	var stopping atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stopping.Load() {
			tcptest.Fill(local, byte(rounds.Load()))
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Write, local, id, memory)))
			tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(core.Read, back, id, memory)))
			if !assert.True(t, bytes.Equal(local, back)) {
				return
			}
			rounds.Add(1)
		}
	}()
	stop := func() int {
		stopping.Store(true)
		<-done
		return int(rounds.Load())
	}
	t.Cleanup(func() { stop() })
	b := busy{target, e, stop, &rounds}
	b.await(t, func() bool { return rounds.Load() > 0 })
	return b
}

// await waits for something that happens while memory is moved.
func (b busy) await(t *testing.T, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, time.Minute, 5*time.Millisecond)
}

func (b busy) lanes(t *testing.T) []pipelined { return slices.Clone(onlyPeer(t, b.e).listed().lanes) }

// areReplaced reports whether none of some lanes carries anything any more, and others do.
func (b busy) areReplaced(t *testing.T, former []pipelined) bool {
	now := b.lanes(t)
	return len(now) > 0 && !slices.ContainsFunc(now, func(l pipelined) bool { return slices.Contains(former, l) })
}

func TestLanesWithWornKeysAreReplacedWithoutAFailedTransfer(t *testing.T) {
	testMaxRecords = 300
	defer func() { testMaxRecords = 0 }()
	for name, change := range map[string]func(*core.Config){
		"tcp":                      func(*core.Config) {},
		"one host without permits": func(c *core.Config) { c.SameHost, c.SliceSize = true, 1000 },
	} {
		t.Run(name, func(t *testing.T) {
			path := secretFile(t, newSecret())
			b := keepBusy(t, path, path, change)
			for range 5 {
				former := b.lanes(t)
				b.await(t, func() bool { return b.areReplaced(t, former) })
			}
			require.NotZero(t, b.stop())
		})
	}
}

// The two steps of docs/security.md, with connections that live on all the time.
func TestASecretIsReplacedWithoutAFailedTransfer(t *testing.T) {
	for name, change := range map[string]func(*core.Config){"tcp": func(*core.Config) {}, "one host": tcptest.OnOneHost} {
		t.Run(name, func(t *testing.T) {
			former, next := newSecret(), newSecret()
			targetFile, file := secretFile(t, former), secretFile(t, former)
			b := keepBusy(t, targetFile, file, change)
			for _, secrets := range []string{next + former, next} {
				lanes := b.lanes(t)
				for _, path := range []string{targetFile, file} {
					replace(t, path, secrets)
				}
				b.await(t, func() bool { return b.areReplaced(t, lanes) })
				at := b.rounds.Load()
				b.await(t, func() bool { return b.rounds.Load() > at+1 })
			}
			require.NotZero(t, b.stop())
		})
	}
}

// A peer that is never idle gets no further than others.
func TestAPeerWithAFormerSecretThatIsAlwaysBusyIsCutOff(t *testing.T) {
	former, next := newSecret(), newSecret()
	targetFile := secretFile(t, next+former)
	target, e := newEngine(t, withSecret(targetFile)), newEngine(t, withSecret(secretFile(t, former)))
	memory, local := tcptest.Mapped(t, 2<<20), tcptest.Mapped(t, 2<<20)
	require.NoError(t, target.Register(hostmem.AddressOf(memory), uint64(len(memory)), "cpu:0", true))
	id := tcptest.OpenSegment(t, e, target.Name())
	ask := func() *core.Batch {
		b := tcptest.Submit(t, e, tcptest.Ask(core.Write, local, id, memory))
		tcptest.Wait(t, b)
		return b
	}
	tcptest.Completes(t, ask())
	replace(t, targetFile, next)
	var err error
	for until := time.Now().Add(time.Minute); err == nil && time.Now().Before(until); {
		err = ask().Err()
	}
	require.ErrorContains(t, err, "a certificate of another cluster secret")
}
