// Package simtest gives Go tests simulated devices: it builds the simulator, opens it, controls it, and allocates memory on
// its devices as an application does.
//
// A simulator has one of two APIs, AscendCL and CUDA, each with devices of its own. Tests use AscendCL's unless they call
// UseCUDA.
//
// Settings of a test last until its end. Without them operations cost nothing, no fault is injected, and streams delay
// nothing. A process has one simulator, so tests that use it do not run in parallel.
package simtest

// #include <stdlib.h>
//
// static int call_text(void *function, const char *text) { return ((int (*)(const char *))function)(text); }
// static int call_seed(void *function, unsigned long long seed, int on)
// {
//     return ((int (*)(unsigned long long, int))function)(seed, on);
// }
// static int call_peers(void *function, int on) { return ((int (*)(int))function)(on); }
// static void call(void *function) { ((void (*)(void))function)(); }
// static const char *call_message(void *function) { return ((const char *(*)(void))function)(); }
// static size_t call_report(void *function, char *out, size_t size)
// {
//     return ((size_t (*)(char *, size_t))function)(out, size);
// }
import "C"

import (
	"encoding/json"
	"testing"
	"unsafe"

	"kvferry/core/device"
	"kvferry/internal/dl"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"
)

// simulator is one build of the simulator, opened in this process.
type simulator struct {
	api     *api
	path    string
	library dl.Library
}

// variant is what a simulator was built as.
type variant struct {
	api     *api
	options string
}

// simulators are all that were opened; used is the one that tests use now.
var (
	simulators = map[variant]*simulator{}
	used       *simulator
)

// Use has the test use the simulator of AscendCL that was compiled with options, such as OlderCANN. A test calls it before
// any other function here.
func Use(t testing.TB, options string) {
	t.Helper()
	use(t, variant{&ascendCL, options})
}

// UseCUDA has the test use the simulator of CUDA that was compiled with options, such as OlderCUDA, from now on, for all
// functions here. A Device stays with the simulator that it was made with.
func UseCUDA(t testing.TB, options string) {
	t.Helper()
	use(t, variant{&cudaAPI, options})
}

func use(t testing.TB, v variant) {
	t.Helper()
	before := used
	t.Cleanup(func() { used = before })
	used = open(t, v)
}

func open(t testing.TB, v variant) *simulator {
	t.Helper()
	if s := simulators[v]; s != nil {
		return s
	}
	path := build(t, v.api, v.options)
	library, err := dl.Open(path)
	require.NoError(t, err)
	s := &simulator{api: v.api, path: path, library: library}
	s.text(t, "kvferry_sim_cost", free)
	simulators[v] = s
	return s
}

// current is the simulator that the test uses: AscendCL's if the test called neither Use nor UseCUDA.
func current(t testing.TB) *simulator {
	t.Helper()
	if used == nil {
		return open(t, variant{api: &ascendCL})
	}
	return used
}

// symbol returns the address of a function of the simulator.
func (s *simulator) symbol(t testing.TB, name string) unsafe.Pointer {
	t.Helper()
	address := s.library.Symbol(name)
	require.NotNil(t, address, "the simulator has no %s", name)
	return address
}

// text calls a control function that takes a text.
func (s *simulator) text(t testing.TB, name, text string) {
	t.Helper()
	given := C.CString(text)
	defer C.free(unsafe.Pointer(given))
	require.Zero(t, C.call_text(s.symbol(t, name), given), "%s(%q)", name, text)
}

// message is what the last call that failed on this OS thread says about it.
func (s *simulator) message(t testing.TB) string {
	t.Helper()
	return C.GoString(C.call_message(s.symbol(t, "kvferry_sim_message")))
}

// Library returns the path of the simulator, for KVFERRY_ASCENDCL or ascend.New, or KVFERRY_CUDA or cuda.New.
func Library(t testing.TB) string {
	t.Helper()
	return current(t).path
}

// Runtime returns the simulated devices as the engine knows them. They log to the test.
func Runtime(t testing.TB) device.Runtime {
	t.Helper()
	return current(t).api.runtime(Library(t), zaptest.NewLogger(t))
}

// Faults has calls and copies fail: see kvferry_sim_faults in kvferry_sim.h. Calls are counted from now on, those of the
// test's own Devices too.
func Faults(t testing.TB, spec string) {
	t.Helper()
	s := current(t)
	s.text(t, "kvferry_sim_faults", spec)
	t.Cleanup(func() {
		s.text(t, "kvferry_sim_faults", "")
		C.call(s.symbol(t, "kvferry_sim_release_hangs"))
	})
}

// ReleaseHangs has copies that hang continue.
func ReleaseHangs(t testing.TB) {
	t.Helper()
	C.call(current(t).symbol(t, "kvferry_sim_release_hangs"))
}

// Seed has streams delay operations at random: a wait that is missing shows as wrong bytes.
func Seed(t testing.TB, seed uint64) {
	t.Helper()
	function := current(t).symbol(t, "kvferry_sim_seed")
	require.Zero(t, C.call_seed(function, C.ulonglong(seed), 1))
	t.Cleanup(func() { require.Zero(t, C.call_seed(function, 0, 0)) })
}

// NoPeers has no device have access to the memory of another.
func NoPeers(t testing.TB) {
	t.Helper()
	function := current(t).symbol(t, "kvferry_sim_peers")
	require.Zero(t, C.call_peers(function, 0))
	t.Cleanup(func() { require.Zero(t, C.call_peers(function, 1)) })
}

// free is the cost model in which nothing takes time.
const free = "0"

// Cost has operations take time: see kvferry_sim_cost in kvferry_sim.h.
func Cost(t testing.TB, spec string) {
	t.Helper()
	s := current(t)
	s.text(t, "kvferry_sim_cost", spec)
	t.Cleanup(func() { s.text(t, "kvferry_sim_cost", free) })
}

// Report is what the simulator has counted: kvferry_sim_report in kvferry_sim.h.
type Report struct {
	Leaked      Leaked            `json:"leaked"`
	Misuse      map[string]uint64 `json:"misuse"`       // by what was wrong: "double_free"
	Copies      map[string]uint64 `json:"copies"`       // by kind: "d2h"
	CopiedBytes map[string]uint64 `json:"copied_bytes"` // by kind
	Pageable    uint64            `json:"pageable_copies"`
	Executed    uint64            `json:"executed"`  // operations of streams
	WorkedNs    int64             `json:"worked_ns"` // that they take by the cost model
	Faults      uint64            `json:"faults"`    // that have happened
	Calls       map[string]uint64 `json:"calls"`     // by function
	Devices     []DeviceUse       `json:"devices"`   // by number
}

// DeviceUse is what was done with one device.
type DeviceUse struct {
	Sets   int64 `json:"sets"`   // how often it was made a thread's current device; how often its context was retained
	Resets int64 `json:"resets"` // how often it was reset or released
	Lost   bool  `json:"lost"`
}

// Leaked counts what is allocated, created or set now.
type Leaked struct {
	DeviceAllocations uint64 `json:"device_allocations"`
	DeviceBytes       uint64 `json:"device_bytes"`
	HostAllocations   uint64 `json:"host_allocations"`
	HostBytes         uint64 `json:"host_bytes"`
	VirtualRanges     uint64 `json:"virtual_ranges"`
	Streams           uint64 `json:"streams"`
	Events            uint64 `json:"events"`
	DeviceSets        int64  `json:"device_sets"` // less resets
}

// TakeReport returns what the simulator has counted since ResetCounters, and what is allocated and open now.
func TakeReport(t testing.TB) Report {
	t.Helper()
	function := current(t).symbol(t, "kvferry_sim_report")
	buffer := make([]byte, C.call_report(function, nil, 0)+1024) // more may be counted before it is written
	length := C.call_report(function, (*C.char)(unsafe.Pointer(&buffer[0])), C.size_t(len(buffer)))
	require.Less(t, int(length), len(buffer), "the report was cut off")
	var r Report
	require.NoError(t, json.Unmarshal(buffer[:length], &r))
	return r
}

// ResetCounters has the counts of the report begin again.
func ResetCounters(t testing.TB) {
	t.Helper()
	C.call(current(t).symbol(t, "kvferry_sim_reset_counters"))
}

// NoLeaks fails the test if at its end anything is leaked or was misused. A test calls it first, so that it checks after
// all other cleanups.
func NoLeaks(t testing.TB) {
	t.Helper()
	ResetCounters(t)
	require.Zero(t, TakeReport(t).Leaked, "left over from before the test")
	t.Cleanup(func() {
		after := TakeReport(t)
		require.Zero(t, after.Leaked, "left over at the end")
		for what, times := range after.Misuse {
			require.Zero(t, times, what)
		}
	})
}
