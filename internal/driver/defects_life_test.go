package driver_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/staging"
	"kvferry/core/status"
	"kvferry/internal/driver/drivertest"
	"kvferry/tcp"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// This file has the tests of waits, resources, devices and texts of errors.

// A waiting thread must sleep until there is work, and neither spin nor poll every millisecond.
func TestDefect10WaitingCostsNothing(t *testing.T) { onAll(t, waitingCostsNothing) }

func waitingCostsNothing(t *testing.T, k *kind) {
	for op := range ways {
		t.Run(fmt.Sprintf("for a copy at an initiator, %v", op), func(t *testing.T) { waitForAHangingCopy(t, op, true) })
		t.Run(fmt.Sprintf("for a copy at a target, %v", op), func(t *testing.T) { waitForAHangingCopy(t, op, false) })
	}
}

func waitForAHangingCopy(t *testing.T, op core.Opcode, atInitiator bool) {
	simtest.NoLeaks(t)
	const length = 4 * mib // much more than the blocks hold, so that there is waiting for these too
	app := newDevice(t, 0)
	p := startPair(t, small)
	local, remote := p.initiator.onHost(length), p.target.onHost(length)
	if atInitiator {
		local = p.initiator.on(app, length)
	} else {
		remote = p.target.on(app, length)
	}
	to, from := ways[op](local, remote)
	want := moved(to, from, span{0, length})
	simtest.Faults(t, "exec:1=hang")
	b := p.initiator.submit(requests(op, local, p.segment, remote, span{0, length})...)
	eventually(t, func() bool { return simtest.TakeReport(t).Faults == 1 }, "a copy hangs")
	calls := callsAtRest(t)

	const watched = 500 * time.Millisecond
	before := usage(t)
	select {
	case <-ended(b):
		require.Fail(t, "the batch ends although a copy hangs")
	case <-time.After(watched):
	}
	after := usage(t)
	require.Less(t, processorTime(after)-processorTime(before), watched/5)
	require.Less(t, after.Nvcsw-before.Nvcsw, watched.Milliseconds()*4/5, "how often threads of the process went to sleep")
	require.Less(t, callsSoFar(t)-calls, uint64(120), "of the library meanwhile: less than if it were asked every few milliseconds")

	simtest.ReleaseHangs(t)
	p.initiator.wait(b)
	require.NoError(t, b.Err())
	requireBytes(t, want, to)
}

// callsAtRest waits until the library was not called for a while, and returns how often it was called before.
func callsAtRest(t *testing.T) uint64 {
	t.Helper()
	const rest = 50 * time.Millisecond
	calls, since := callsSoFar(t), time.Now()
	require.Eventually(t, func() bool {
		if now := callsSoFar(t); now != calls {
			calls, since = now, time.Now()
		}
		return time.Since(since) >= rest
	}, enough, rest/10)
	return calls
}

func callsSoFar(t *testing.T) (all uint64) {
	t.Helper()
	for _, calls := range simtest.TakeReport(t).Calls {
		all += calls
	}
	return all
}

func usage(t *testing.T) (u unix.Rusage) {
	t.Helper()
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return u
}

func processorTime(u unix.Rusage) time.Duration {
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A thread that is woken must check whether there is work.
func TestDefect11WakingUpForNothing(t *testing.T) { onAll(t, wakingUpForNothing) }

func wakingUpForNothing(t *testing.T, k *kind) {
	t.Run("blocks without jobs", wakeWithoutJobs)
	t.Run("jobs among accounts that come and go", wakeAmongJobs)
	t.Run("batches of nothing", submitNothing)
}

// wakeWithoutJobs has the threads of devices make blocks, and end, and never gives them a job.
func wakeWithoutJobs(t *testing.T) {
	simtest.NoLeaks(t)
	for round := range 20 {
		s := stagingOf(t, 0)
		for dir := range staging.In + 1 {
			for range 1 + round%3 {
				var a *staging.Account
				called := make(chan struct{}, 1)
				a = s.Account(dir, staging.Role(round%2), func() {
					select {
					case called <- struct{}{}:
					default:
					}
				})
				l, err := a.TryLease(staging.Granule)
				for ; l == nil; l, err = a.TryLease(staging.Granule) {
					require.NoError(t, err)
					<-called
				}
				if round%2 == 0 {
					l.Release()
				}
				_, err = a.TryLease(smallHalf) // and nobody fetches it
				require.NoError(t, err)
			}
		}
		require.NoError(t, s.Close())
		require.Zero(t, s.Stats(staging.Out).Jobs+s.Stats(staging.In).Jobs)
	}
}

// stagingOf is a device's staging by itself, with as few blocks as small has.
func stagingOf(t *testing.T, index int) *staging.Device {
	t.Helper()
	return staging.New(drivertest.Open(t, index), fmt.Sprintf("%s:%d", simtest.Runtime(t).Name(), index), staging.Options{
		BlockSize: smallHalf / 2, PoolSize: 2 * smallHalf, GatherBelow: mib, Timeout: time.Minute, Log: zap.NewNop(),
	})
}

// wakeAmongJobs does jobs while others only wait for blocks, lose interest, and come again.
func wakeAmongJobs(t *testing.T) {
	simtest.NoLeaks(t)
	const jobs = 100
	app := newDevice(t, 0)
	memory := app.Alloc(staging.Granule)
	s := stagingOf(t, 0)
	var running sync.WaitGroup
	done := make(chan error, 2*jobs)
	for dir := range staging.In + 1 {
		running.Go(func() {
			a := s.Account(dir, staging.Initiator, nil)
			defer a.Close()
			for range jobs {
				l, err := a.Lease(t.Context(), 1)
				if !assert.NoError(t, err) {
					return
				}
				s.Start(dir, &staging.Job{
					Moves: []staging.Move{{Device: memory, Block: l.Addr, Length: 4096}},
					Done: func(err error) {
						l.Release()
						done <- err
					},
				})
			}
		})
		running.Go(func() {
			for i := range jobs {
				a := s.Account(dir, staging.Target, func() {})
				l, err := a.TryLease(uint64(1 + rand.IntN(smallHalf)))
				assert.NoError(t, err)
				if l != nil && i%2 == 0 {
					l.Release()
				}
				a.Close()
				if l != nil {
					l.Release()
				}
			}
		})
	}
	running.Wait()
	require.NoError(t, s.Close())
	require.Len(t, done, 2*jobs, "each job is done once")
	for range 2 * jobs {
		require.NoError(t, <-done)
	}
}

// submitNothing wakes all that moves the bytes of a pair, with no byte to move.
func submitNothing(t *testing.T) {
	simtest.NoLeaks(t)
	app := newDevice(t, 0)
	p := startPair(t, nil)
	local, remote := p.initiator.on(app, mib), p.target.on(app, mib)
	for op := range ways {
		b := p.initiator.submit()
		require.True(t, b.Done())
		b = p.initiator.submit(requests(op, local, p.segment, remote, span{0, 0}, span{100, 0})...)
		p.initiator.Assist(b, p.segment)
		p.initiator.wait(b)
		require.EqualValues(t, 2, b.Summary().Completed)
		require.NoError(t, p.initiator.DiscardBatch(b))
		p.initiator.transfer(op, local, p.segment, remote, span{5, 0}, span{5, 5000}, span{5005, 0})
	}
}

// Close must end every thread and release everything, whatever the device is doing.
func TestDefect12CloseReturnsAndLeavesNothing(t *testing.T) { onAll(t, closeReturnsAndLeavesNothing) }

func closeReturnsAndLeavesNothing(t *testing.T, k *kind) {
	t.Run("an idle device", closeIdle)
	t.Run("a busy device", closeBusy)
	t.Run("a device that hung", closeAfterAHang)
	t.Run("a device that hangs", closeDuringAHang)
}

// requireAsBefore finds nothing of the engines at the devices any more.
func requireAsBefore(t *testing.T, before simtest.Leaked) {
	t.Helper()
	require.Equal(t, before, simtest.TakeReport(t).Leaked)
}

func closeIdle(t *testing.T) {
	simtest.NoLeaks(t)
	app := newDevice(t, 0)
	for _, used := range []bool{false, true} {
		p := startPair(t, nil)
		local, remote := p.initiator.on(app, mib), p.target.on(app, mib)
		before := simtest.TakeReport(t).Leaked
		if used {
			for op := range ways {
				p.initiator.transfer(op, local, p.segment, remote, scattered(mib, 4096, 100*kib)...)
			}
			require.NotEqual(t, before, simtest.TakeReport(t).Leaked)
		}
		require.NoError(t, p.initiator.closes())
		require.NoError(t, p.target.closes())
		requireAsBefore(t, before)
	}
}

func closeBusy(t *testing.T) {
	const length = 32 * mib
	for op := range ways {
		for _, targetFirst := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, target first: %v", op, targetFirst), func(t *testing.T) {
				simtest.NoLeaks(t)
				app := newDevice(t, 0)
				p := startPair(t, func(c *core.Config) {
					small(c)
					c.RetryCount = 1
				})
				addr := app.Alloc(2 * length)
				before := simtest.TakeReport(t).Leaked
				require.NoError(t, p.initiator.Register(addr, length, app.location, true))
				require.NoError(t, p.target.Register(addr+length, length, app.location, true))
				simtest.Cost(t, "d2h=0.1/15,h2d=0.1/15")
				b := p.initiator.submit(core.Request{Opcode: op, Local: addr, Target: p.segment, Remote: uint64(addr + length), Length: length})
				eventually(t, func() bool { r := simtest.TakeReport(t); return r.Copies["d2h"] > 0 && r.Copies["h2d"] > 0 }, "both are busy")
				ends := []*node{p.initiator, p.target}
				if targetFirst {
					slices.Reverse(ends)
				}
				for _, end := range ends {
					require.NoError(t, end.closes())
				}
				p.initiator.wait(b)
				require.Error(t, b.Err())
				requireAsBefore(t, before)
			})
		}
	}
}

// shortTimeouts has an engine abandon copies soon. A part of the time is for the stream to come to rest, on a busy machine too.
func shortTimeouts(c *core.Config) { c.ProgressTimeout = time.Second }

// hangs starts a pair whose initiator has a copy under way that does not end.
func hangs(t *testing.T, op core.Opcode) (*node, *core.Batch) {
	t.Helper()
	app := newDevice(t, 0)
	p := startPair(t, shortTimeouts)
	local, remote := p.initiator.on(app, mib), p.target.onHost(mib)
	simtest.Faults(t, "exec:1=hang")
	b := p.initiator.submit(requests(op, local, p.segment, remote, span{0, mib})...)
	eventually(t, func() bool { return simtest.TakeReport(t).Faults == 1 }, "a copy hangs")
	return p.initiator, b
}

func closeAfterAHang(t *testing.T) {
	for op := range ways {
		t.Run(op.String(), func(t *testing.T) {
			simtest.NoLeaks(t)
			n, b := hangs(t, op)
			n.wait(b)
			require.ErrorContains(t, b.Err(), "not done within 1s")
			simtest.ReleaseHangs(t)
			require.NoError(t, n.closes())
		})
	}
}

// closeDuringAHang runs in a process of its own, since memory that a copy may still access can never be freed.
func closeDuringAHang(t *testing.T) {
	if !drivertest.Fresh(t, false) {
		return
	}
	n, b := hangs(t, core.Write)
	err := n.closes()
	require.ErrorContains(t, err, simtest.Runtime(t).Name()+":0")
	require.True(t, b.Done())
	require.Error(t, b.Err())
	require.EqualValues(t, 1, simtest.TakeReport(t).Leaked.Streams, "the one that hangs")
}

// What could not be installed must not be there, nor count as success.
func TestDefect13WhatCannotBeInstalledIsNotThere(t *testing.T) {
	onAll(t, whatCannotBeInstalledIsNotThere)
}

func whatCannotBeInstalledIsNotThere(t *testing.T, k *kind) {
	simtest.NoLeaks(t)
	n := newNode(t, nil, k.new("/nowhere/"+k.file, zap.NewNop()))
	err := n.RequireRuntime(k.name)
	require.Equal(t, status.DeviceNotFound, status.Of(err, status.OK))
	require.ErrorContains(t, err, "/nowhere/"+k.file)
	require.Error(t, n.RequireRuntime(k.name), "the second time as well")

	refused := errors.New("no port is free")
	_, err = n.Install("tcp", func(*core.Engine) (core.Transport, error) { return nil, refused })
	require.ErrorIs(t, err, refused)
	require.Zero(t, n.Descriptor().DataPort)
	require.Empty(t, n.Links())
	_, err = n.OpenSegment(startNode(t, nil).Name())
	require.Equal(t, status.NotSupportedTransport, status.Of(err, status.OK))
	b, err := n.AllocateBatch(1)
	require.NoError(t, err)
	host := pages(t, 4096)
	err = n.Submit(b, []core.Request{{Opcode: core.Write, Local: drivertest.AddressOf(host), Target: 1, Remote: rawBase, Length: 1}}, nil)
	require.Equal(t, status.NotSupportedTransport, status.Of(err, status.OK))
	require.ErrorContains(t, err, "no transport is installed")
	require.Zero(t, b.Summary())

	require.Error(t, n.Register(drivertest.AddressOf(host), 4096, k.at("0"), true))
	require.Empty(t, n.Descriptor().Buffers)

	transport, err := n.Install("tcp", tcp.Open)
	require.NoError(t, err)
	require.NotNil(t, transport)
	require.NotZero(t, n.Descriptor().DataPort)
	target := startNode(t, nil)
	n.transfer(core.Write, n.onHost(mib), n.opens(target.Name()), target.onHost(mib), span{0, mib})
}

// The engine must not change the caller's requests.
func TestDefect14RequestsAreTheCallers(t *testing.T) { onAll(t, requestsAreTheCallers) }

func requestsAreTheCallers(t *testing.T, k *kind) {
	simtest.NoLeaks(t)
	const length = mib
	app := newDevice(t, 0)
	p := startPair(t, small)
	remote := p.target.on(app, 4*length)
	var reqs []core.Request
	for i, local := range []*memory{p.initiator.on(app, length), p.initiator.onHost(length), p.initiator.on(app, length), p.initiator.onHost(length)} {
		part := &memory{addr: remote.addr + uintptr(i*length)}
		reqs = append(reqs, requests(core.Opcode(i/2), local, p.segment, part, scattered(length, 0, 4096, 300*kib)...)...)
	}
	reqs = append(reqs, core.Request{Opcode: core.Read, Local: remote.addr, Target: p.segment, Remote: rawBase, Length: 10}) // which fails
	rand.Shuffle(len(reqs), func(i, j int) { reqs[i], reqs[j] = reqs[j], reqs[i] })
	before := slices.Clone(reqs)
	b := p.initiator.submit(reqs...)
	require.Equal(t, before, reqs)
	p.initiator.wait(b)
	require.Equal(t, before, reqs)
	require.EqualValues(t, 1, b.Summary().Failed)
}

// Host memory for staging must be page-locked, made when it is needed, and bounded.
func TestDefect15StagingMemoryIsPageLockedAndBounded(t *testing.T) {
	onAll(t, stagingMemoryIsPageLockedAndBounded)
}

func stagingMemoryIsPageLockedAndBounded(t *testing.T, k *kind) {
	simtest.NoLeaks(t)
	const pool, length = 8 * mib, 40 * mib
	apps := []*accelerator{newDevice(t, 0), newDevice(t, 1)}
	data := dataSize(t)
	p := startPair(t, func(c *core.Config) { c.StagingPoolSize = pool })
	var locals, remotes []*memory
	for _, app := range apps {
		local, remote := &memory{addr: app.Alloc(length)}, &memory{addr: app.Alloc(length)}
		require.NoError(t, p.initiator.Register(local.addr, length, "*", true))
		require.NoError(t, p.target.Register(remote.addr, length, "*", true))
		locals, remotes = append(locals, local), append(remotes, remote)
	}
	p.initiator.transfer(core.Write, p.initiator.onHost(mib), p.segment, p.target.onHost(mib), span{0, mib})
	require.Zero(t, simtest.TakeReport(t).Leaked.HostBytes, "nothing has been staged yet")
	require.Less(t, dataSize(t)-data, 1<<30, "what two engines take up front")

	simtest.ResetCounters(t)
	var batches []*core.Batch
	for op := range ways {
		for i, local := range locals {
			batches = append(batches, p.initiator.submit(requests(op, local, p.segment, remotes[i], scattered(length, 4096, 3*mib)...)...))
		}
	}
	for _, b := range batches {
		p.initiator.wait(b)
		require.NoError(t, b.Err())
	}
	report := simtest.TakeReport(t)
	require.Zero(t, report.Pageable)
	require.NotZero(t, report.Leaked.HostBytes)
	require.LessOrEqual(t, report.Leaked.HostBytes, uint64(len(apps)*2*pool), "two engines have a pool for each device")
}

// dataSize is how much memory of its own the process may write to, in bytes: proc_pid_statm(5).
func dataSize(t *testing.T) int {
	t.Helper()
	statm, err := os.ReadFile("/proc/self/statm")
	require.NoError(t, err)
	var total, resident, shared, text, library, data int
	_, err = fmt.Sscan(string(statm), &total, &resident, &shared, &text, &library, &data)
	require.NoError(t, err)
	return data * os.Getpagesize()
}

// Memory must be copied by threads that are bound to its device, whoever has made the engine or submits.
func TestDefect16EachDeviceIsUsedByThreadsOfItsOwn(t *testing.T) {
	onAll(t, eachDeviceIsUsedByThreadsOfItsOwn)
}

func eachDeviceIsUsedByThreadsOfItsOwn(t *testing.T, k *kind) {
	simtest.NoLeaks(t)
	const length = 300 * kib
	zero, one := newDevice(t, 0), newDevice(t, 1)
	requireZeroCurrent := func() {
		index, set := simtest.CurrentDevice(t)
		require.True(t, set)
		require.Equal(t, 0, index, "the application's device")
	}
	simtest.ResetCounters(t)
	var p *pair
	var local, remote *memory
	zero.Do(func() {
		p = startPair(t, nil)
		local, remote = p.initiator.on(one, length), p.target.on(one, length)
		requireZeroCurrent()
	})
	spans := scattered(length, 4096, 100*kib)

	move := func() {
		for op := range ways {
			b := p.initiator.submit(requests(op, local, p.segment, remote, spans...)...)
			p.initiator.wait(b)
			require.NoError(t, b.Err())
		}
	}
	zero.Do(func() {
		move()
		requireZeroCurrent()
	})
	drivertest.Locked(func() {
		move()
		_, set := simtest.CurrentDevice(t)
		require.False(t, set, "on a thread that has set none")
	})
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() { drivertest.Locked(move) })
	}
	running.Wait()

	devices := simtest.TakeReport(t).Devices
	require.Zero(t, devices[0].Sets, "of device 0, which has nothing to do with it")
	require.NotZero(t, devices[1].Sets)
	p.initiator.transfer(core.Write, local, p.segment, remote, spans...)
	p.initiator.transfer(core.Read, local, p.segment, remote, spans...)
}

// What memory is must be decided by all that the library may say, and by its owner where that says nothing.
func TestDefect17AllKindsOfMemoryAreKnown(t *testing.T) { onAll(t, allKindsOfMemoryAreKnown) }

func allKindsOfMemoryAreKnown(t *testing.T, k *kind) {
	const length = 200 * kib
	spans := scattered(length, 4096, 70*kib)
	both := func(p *pair, local, remote *memory) {
		for op := range ways {
			p.initiator.transfer(op, local, p.segment, remote, spans...)
		}
	}
	if k == npus {
		t.Run("an older CANN says nothing", func(t *testing.T) {
			k.use(t, k.older)
			simtest.NoLeaks(t)
			zero, one := newDevice(t, 0), newDevice(t, 1)
			p := startPair(t, nil)
			both(p, p.initiator.on(one, length), p.target.on(zero, length))
			both(p, p.initiator.onHost(length), p.target.on(one, length))
		})
	}
	if k == gpus {
		t.Run("that CUDA manages, maps, or has locked in pages", func(t *testing.T) {
			simtest.NoLeaks(t)
			app := newDevice(t, 1)
			p := startPair(t, nil)
			managed, mapped, pinned := app.AllocManaged(length), app.AllocVirtual(simtest.VirtualPiece), app.AllocPinned(length)
			for _, local := range []*memory{
				{managed, length, app, nil}, {mapped, length, app, nil}, {pinned, length, nil, hostmem.At(pinned, length)},
			} {
				require.NoError(t, p.initiator.Register(local.addr, length, "*", true))
				both(p, local, p.target.onHost(length))
				both(p, local, p.target.on(app, length))
			}
		})
	}
	t.Run("the owner says nothing, or something else", func(t *testing.T) {
		simtest.NoLeaks(t)
		app := newDevice(t, 1)
		p := startPair(t, nil)
		for _, location := range []string{"", "*", "cpu:0", k.at("0")} {
			addr := app.Alloc(length)
			require.NoError(t, p.initiator.Register(addr, length, location, true))
			both(p, &memory{addr, length, app, nil}, p.target.onHost(length))
		}
	})
}

// Errors and log lines must name the device, the peer and the transport that they are about.
func TestDefect18ErrorsNameWhatTheyAreAbout(t *testing.T) { onAll(t, errorsNameWhatTheyAreAbout) }

func errorsNameWhatTheyAreAbout(t *testing.T, k *kind) {
	t.Run("at an initiator", func(t *testing.T) {
		simtest.NoLeaks(t)
		zero, one := newDevice(t, 0), newDevice(t, 1)
		p := startPair(t, nil)
		p.initiator.on(zero, mib)
		local, remote := p.initiator.on(one, mib), p.target.onHost(mib)
		simtest.Faults(t, k.failsOnce)
		b := p.initiator.submit(requests(core.Write, local, p.segment, remote, span{0, 1000})...)
		p.initiator.wait(b)
		simtest.Faults(t, "")
		requireAbout(t, k.at("1"), b.Err().Error())
		require.ErrorContains(t, b.Err(), fmt.Sprintf("WRITE of 1000 bytes at %#x", remote.addr))
		require.Equal(t, k.at("1")+", out", p.initiator.field("a staging job failed", "device"))
		requireAbout(t, k.at("1"), p.initiator.field("transfer failed", "error"))
	})
	t.Run("at a target", func(t *testing.T) {
		simtest.NoLeaks(t)
		zero, one := newDevice(t, 0), newDevice(t, 1)
		p := startPair(t, nil)
		p.target.on(zero, mib)
		local, remote := p.initiator.onHost(mib), p.target.on(one, mib)
		simtest.Faults(t, k.failsOnce)
		b := p.initiator.submit(requests(core.Read, local, p.segment, remote, span{0, 1000})...)
		p.initiator.wait(b)
		simtest.Faults(t, "")
		require.ErrorContains(t, b.Err(), p.target.Name())
		requireAbout(t, k.at("1"), p.target.field("data request failed", "reason"))
		require.Contains(t, p.target.field("data request failed", "peer"), "127.0.0.1:")
	})
	t.Run("of a peer", func(t *testing.T) {
		simtest.NoLeaks(t)
		app := newDevice(t, 1)
		p := startPair(t, nil)
		local := p.initiator.on(app, mib)
		b := p.initiator.submit(requests(core.Write, local, p.segment, &memory{addr: rawBase}, span{0, 1000})...)
		p.initiator.wait(b)
		require.ErrorContains(t, b.Err(), p.target.Name())
		links := p.initiator.Links()
		require.Len(t, links, 1)
		require.Equal(t, p.target.Name(), links[0].Peer)
		require.Equal(t, "tcp", links[0].Transport)
		requireNoOtherTransport(t, p.initiator, p.target)
	})
	t.Run("of a device that is not there", func(t *testing.T) {
		simtest.NoLeaks(t)
		n := startNode(t, nil)
		err := n.Register(drivertest.AddressOf(pages(t, 4096)), 4096, k.at("7"), true)
		require.ErrorContains(t, err, "there is no "+k.at("7"))
	})
}

// requireAbout finds that device in a text, and no other.
func requireAbout(t *testing.T, device, text string) {
	t.Helper()
	names := regexp.MustCompile(`(npu|cuda):\d+`).FindAllString(text, -1)
	require.Equal(t, []string{device}, slices.Compact(names), text)
}

// field is a field of the first log line with that message, which may be yet to come.
func (n *node) field(message, name string) string {
	n.t.Helper()
	lines := func() *observer.ObservedLogs { return n.logs.FilterMessage(message) }
	eventually(n.t, func() bool { return lines().Len() > 0 }, message)
	return fmt.Sprint(lines().All()[0].ContextMap()[name])
}

// requireNoOtherTransport checks everything that was logged.
func requireNoOtherTransport(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		for _, line := range n.logs.All() {
			text := strings.ToLower(fmt.Sprint(line.Message, line.ContextMap()))
			for _, other := range []string{"rdma", "hccl", "nccl", "nvlink"} {
				require.NotContains(t, text, other)
			}
		}
	}
}

// Constants must keep their values in every expression.
func TestDefect18ConstantsCanBeUsedInExpressions(t *testing.T) {
	headers, err := filepath.Glob("../../capi/include/*.h")
	require.NoError(t, err)
	constant := regexp.MustCompile(`(?m)^#define (\w+) +([^\s].*?)(?: */\*.*)?$`)
	whole := regexp.MustCompile(`^(\w+|"[^"]*"|\(.*\))$`)
	program := "#include <transfer_engine_ext.h>\n"
	count := 0
	for _, header := range headers {
		text, err := os.ReadFile(header)
		require.NoError(t, err)
		for _, match := range constant.FindAllStringSubmatch(string(text), -1) {
			name, value := match[1], match[2]
			require.Regexp(t, whole, value, "%s of %s", name, header)
			if !strings.HasSuffix(name, "_t") { // which is a type
				program += fmt.Sprintf("typedef char check_%s[2 * %s - 1 == 2 * (%[1]s) - 1 && %[1]s + 1 - %[1]s == 1 ? 1 : -1];\n", name, name)
				count++
			}
		}
	}
	require.NotZero(t, count)
	compile := exec.Command("cc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I../../capi/include", "-fsyntax-only", "-x", "c", "-")
	compile.Stdin = strings.NewReader(program)
	output, err := compile.CombinedOutput()
	require.NoError(t, err, "%s", output)
}
