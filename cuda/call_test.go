package cuda_test

import (
	"bytes"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/internal/driver"
	"kvferry/internal/driver/drivertest"
	"kvferry/tests/simtest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// application is a program with work in a stream of one GPU.
type application struct {
	t      *testing.T
	gpu    *simtest.Device
	stream simtest.Stream
	memory uintptr
	pinned []byte // page-locked
}

const bytesOfWork = 4096

// noCaptures builds a driver without the function that says whether a stream is being captured.
const noCaptures = "-DcuStreamIsCapturing=cuLaterStreamIsCapturing"

// newApplication has a stream of its own, or the default one.
func newApplication(t *testing.T, index int, ownStream bool) *application {
	t.Helper()
	gpu := simtest.NewDevice(t, index)
	pinned := gpu.AllocPinned(bytesOfWork)
	a := &application{
		t: t, gpu: gpu, stream: gpu.DefaultStream(), memory: gpu.Alloc(bytesOfWork),
		pinned: unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&pinned))), bytesOfWork),
	}
	if ownStream {
		a.stream = gpu.NewStream()
	}
	return a
}

// read and write queue copies between both memories.
func (a *application) read()  { a.stream.Read(drivertest.AddressOf(a.pinned), a.memory, bytesOfWork) }
func (a *application) write() { a.stream.Write(a.memory, drivertest.AddressOf(a.pinned), bytesOfWork) }

// hang queues a copy that does not end before simtest.ReleaseHangs.
func (a *application) hang() {
	simtest.Faults(a.t, "exec:1=hang")
	a.read()
	a.faultsHappened(1)
}

func (a *application) faultsHappened(number uint64) {
	require.Eventually(a.t, func() bool { return simtest.TakeReport(a.t).Faults == number }, enough, time.Millisecond)
}

// call is Runtime.Call on the thread of the application.
func (a *application) call(r *driver.Runtime, f func()) (err error) {
	a.gpu.Do(func() { err = r.Call(a.stream.Handle, f) })
	return err
}

func of(b byte) []byte { return bytes.Repeat([]byte{b}, bytesOfWork) }

func TestACallHasItsPlaceInTheStreamAndDoesNotWaitForIt(t *testing.T) {
	for driver, options := range map[string]string{"": "", "of a driver that knows no captures": noCaptures} {
		for stream, own := range map[string]bool{"a stream ": true, "the default stream ": false} {
			t.Run(stream+driver, func(t *testing.T) {
				simtest.UseCUDA(t, options)
				simtest.NoLeaks(t)
				keepsOrder(t, inUse(t), own)
			})
		}
	}
}

func keepsOrder(t *testing.T, r *driver.Runtime, ownStream bool) {
	a := newApplication(t, 0, ownStream)
	a.gpu.Write(a.memory, of(1))
	a.hang() // and then reads what is written
	reached, goOn := make(chan []byte), make(chan struct{})
	require.NoError(t, a.call(r, func() {
		reached <- bytes.Clone(a.pinned)
		<-goOn
		copy(a.pinned, of(2))
	}))
	a.write()
	select {
	case <-reached:
		require.Fail(t, "what is before it has not been done")
	default:
	}
	simtest.ReleaseHangs(t)
	require.Equal(t, of(1), <-reached, "what is before it has been done")
	close(goOn)
	a.stream.Wait()
	require.Equal(t, of(2), a.gpu.Read(a.memory, bytesOfWork), "what is behind it has waited")
}

func TestManyCallsAreMadeOnceEachAndInTurn(t *testing.T) {
	r := simulated(t)
	simtest.Seed(t, 3)
	a := newApplication(t, 0, true)
	var made []int
	for i := range 100 {
		a.read()
		require.NoError(t, a.call(r, func() { made = append(made, i) }))
	}
	a.stream.Wait()
	require.Len(t, made, 100)
	require.IsIncreasing(t, made)
}

func TestTheHandleOneIsTheDefaultStreamOfTheThreadsContext(t *testing.T) {
	r := simulated(t)
	a := newApplication(t, 1, false)
	a.stream.Handle = 1
	called := make(chan struct{}, 1)
	require.NoError(t, a.call(r, func() { called <- struct{}{} }))
	a.stream.Wait()
	<-called
}

func TestTheHandleTwoIsLeftToCUDA(t *testing.T) {
	simtest.UseCUDA(t, noCaptures)
	r := inUse(t)
	a := newApplication(t, 0, false)
	a.stream.Handle = 2 // a stream of each thread, which the simulator does not have
	require.ErrorContains(t, a.call(r, never(t)), "cuLaunchHostFunc(0x2) failed with 400")
}

func TestAThreadWithoutAContextHasNoDefaultStream(t *testing.T) {
	simtest.UseCUDA(t, "")
	r := inUse(t)
	newApplication(t, 0, false)
	drivertest.Locked(func() {
		err := r.Call(0, never(t))
		require.Equal(t, status.Context, status.Of(err, status.OK))
		require.ErrorContains(t, err, "failed with 201: CUDA_ERROR_INVALID_CONTEXT")
	})
}

func TestAStreamOfAnyContextIsReachedAndTheThreadKeepsItsOwn(t *testing.T) {
	r := simulated(t)
	a := newApplication(t, 0, true)
	onThread := map[string]func(f func()){
		"of the same GPU": a.gpu.Do, "of another GPU": simtest.NewDevice(t, 1).Do, "without a GPU": drivertest.Locked,
	}
	for name, do := range onThread {
		t.Run(name, func(t *testing.T) {
			called := make(chan struct{}, 1)
			do(func() {
				device, set := simtest.CurrentDevice(t)
				require.NoError(t, r.Call(a.stream.Handle, func() { called <- struct{}{} }))
				after, stillSet := simtest.CurrentDevice(t)
				require.Equal(t, []any{device, set}, []any{after, stillSet})
				simtest.Faults(t, "cuLaunchHostFunc:1")
				require.Error(t, r.Call(a.stream.Handle, never(t)))
				after, stillSet = simtest.CurrentDevice(t)
				require.Equal(t, []any{device, set}, []any{after, stillSet}, "where it fails, too")
			})
			a.stream.Wait()
			<-called
		})
	}
}

func TestACallThatFailsSaysWhyAndLeavesNothingToBeCalled(t *testing.T) {
	for function, text := range map[string]string{
		"cuStreamGetCtx":      "cuStreamGetCtx(0x",
		"cuCtxPushCurrent_v2": "cuCtxPushCurrent()",
		"cuStreamIsCapturing": "cuStreamIsCapturing(0x",
		"cuLaunchHostFunc":    "cuLaunchHostFunc(0x",
	} {
		t.Run(function, func(t *testing.T) {
			r := simulated(t)
			a := newApplication(t, 0, true)
			held := new([64]byte)
			gone := make(chan struct{})
			runtime.AddCleanup(held, func(gone chan struct{}) { close(gone) }, gone)
			simtest.Faults(t, function+":1")
			err := a.call(r, func() { t.Errorf("%v was called", held) })
			require.ErrorContains(t, err, text)
			require.ErrorContains(t, err, "failed with 999: CUDA_ERROR_UNKNOWN")
			a.stream.Wait()
			require.Eventually(t, func() bool {
				runtime.GC()
				select {
				case <-gone:
					return true
				default:
					return false
				}
			}, enough, time.Millisecond, "the function is not kept")
		})
	}
}

func TestWhatIsNoStreamIsRefused(t *testing.T) {
	simtest.UseCUDA(t, "")
	r := inUse(t)
	newApplication(t, 0, false)
	err := r.Call(0x1234, never(t))
	require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
	require.ErrorContains(t, err, "cuStreamGetCtx(0x1234) failed with 400")
}

func TestAContextThatIsBrokenCallsNothing(t *testing.T) {
	r := simulated(t)
	a := newApplication(t, 0, true)
	simtest.Faults(t, "exec:1=hang,exec:2")
	a.read()
	a.read()
	require.NoError(t, a.call(r, never(t)), "nothing has failed yet")
	a.faultsHappened(1)
	simtest.ReleaseHangs(t)
	a.faultsHappened(2)
	require.ErrorContains(t, a.call(r, never(t)), "failed with 700: CUDA_ERROR_ILLEGAL_ADDRESS")
	driver.OnOwnThread(func() { // who is to free memory does not wait for it
		d := drivertest.Open(t, 0).(device.Quiet)
		assert.NoError(t, d.Bind())
		d.AwaitCalls(time.Hour)
		_ = d.Unbind() // fails in a context that has failed
	})
}

// never is what must not be called.
func never(t *testing.T) func() {
	return func() { t.Error("called, though that was to fail") }
}

func TestWhoIsToFreeMemoryWaitsForTheCallsThatStreamsWaitFor(t *testing.T) {
	r := simulated(t)
	a := newApplication(t, 0, true)
	d := drivertest.Open(t, 0).(device.Quiet)
	a.hang()
	returned := false
	require.NoError(t, a.call(r, func() { returned = true }))
	drivertest.OnThread(t, d, func() {
		d.AwaitCalls(time.Millisecond)
		require.False(t, returned, "there is a limit")
		simtest.ReleaseHangs(t)
		d.AwaitCalls(time.Hour)
		require.True(t, returned)
	})
	a.stream.Wait()
}
