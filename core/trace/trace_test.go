package trace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"kvferry/core/clock"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// found is what a file has, as far as these tests look.
type found struct {
	Events []struct {
		Name, Cat, Ph, ID string
		Ts, Dur           float64
		Pid, Tid          int
		Args              map[string]any
	} `json:"traceEvents"`
	About about `json:"otherData"`
}

func (a *aboutClock) UnmarshalJSON(text []byte) error {
	var read struct {
		Identity string  `json:"identity"`
		Zero     float64 `json:"began_us"`
		Error    float64 `json:"error_us"`
	}
	err := json.Unmarshal(text, &read)
	a.Identity, a.Zero, a.Error = read.Identity, micros(read.Zero*1000), micros(read.Error*1000)
	return err
}

func (m *micros) UnmarshalJSON(text []byte) error {
	var read float64
	err := json.Unmarshal(text, &read)
	*m = micros(read * 1000)
	return err
}

// encoded is what a file of these engines has.
func encoded(t *testing.T, recorders ...*Recorder) (f found, unfinished bool) {
	t.Helper()
	var out bytes.Buffer
	unfinished, err := encode(&out, recorders)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(out.Bytes(), &f), out.String())
	return f, unfinished
}

// count is how many events have a name.
func (f *found) count(name string) (n int) {
	for _, e := range f.Events {
		if e.Name == name {
			n++
		}
	}
	return n
}

// unwritten is a recorder whose file is never written.
func unwritten(o Options) *Recorder {
	o.Batches = max(o.Batches, 1)
	return newRecorder("host:1", "0123456789abcdef", o, &file{changed: make(chan struct{}, 1)})
}

func TestWhatIsNotTracedIsRecordedByNobody(t *testing.T) {
	r := Open("host:1", "00", Options{})
	require.Nil(t, r)
	r.Listening(1)
	r.Met("peer", "11", 1, 2, 3)
	require.Zero(t, r.Now())
	b, c, s := r.Begin(1, "", 1), r.Connection("peer", [16]byte{}, 1), r.Session("peer")
	require.Nil(t, b)
	require.Zero(t, c.Take(b, true, 1, clock.Now()))
	require.Zero(t, b.Now())
	require.Zero(t, s.Now())
	s.Greeted([16]byte{}, 1)
	s.Answered([]Served{{}}, 1, 1)
	b.Copied(Local, "", 1, 1)
	for _, note := range []func(int32, time.Duration){b.Sent, b.Answered, b.Ended} {
		note(1, 1)
	}
	b.Lost(1)
	r.Close()
	require.Zero(t, testing.AllocsPerRun(10, func() { c.Take(r.Begin(1, "", 1), true, 1, clock.Now()); b.Ended(1, clock.Now()) }))
}

func TestTheLastBatchesAreKeptAndThoseThatTookLong(t *testing.T) {
	r := unwritten(Options{Batches: 3, Slower: time.Millisecond})
	for i := range 10 {
		b := r.Begin(uint64(i), "", clock.Now())
		kept := b.End(b.began+time.Duration(i%2)*time.Millisecond, Outcome{Operation: "read"})
		require.Equal(t, i%2 == 1, kept)
	}
	f, unfinished := encoded(t, r)
	require.False(t, unfinished)
	var kept []any
	for _, e := range f.Events {
		if e.Name == "read batch" {
			kept = append(kept, e.Args["batch"])
		}
	}
	require.Equal(t, []any{5., 7., 9.}, kept)
}

func TestStepsOfABatchAreBounded(t *testing.T) {
	r := unwritten(Options{})
	b := r.Begin(1, "", clock.Now())
	c := r.Connection("peer", [16]byte{1}, 1)
	for range mostSteps {
		b.Ended(c.Take(b, true, 1, clock.Now()), clock.Now())
	}
	require.Zero(t, c.Take(b, true, 1, clock.Now()))
	b.Copied(Local, "", 1, clock.Now())
	b.Ended(0, clock.Now())
	b.End(clock.Now(), Outcome{Operation: "write"})
	require.Zero(t, c.Take(b, true, 1, clock.Now()), "nothing is added to what has ended")
	f, _ := encoded(t, r)
	require.Equal(t, mostSteps, f.count("WRITE"))
	require.EqualValues(t, 3, f.Events[0].Args["steps_left_out"])
}

func TestWhatIsUnderWayIsInTheFile(t *testing.T) {
	r := unwritten(Options{Slower: time.Hour})
	b := r.Begin(7, "00-af-b7-01", clock.Now())
	c := r.Connection("peer", [16]byte{1}, 4)
	c.Take(b, true, 100, clock.Now())
	f, unfinished := encoded(t, r)
	require.True(t, unfinished)
	require.Equal(t, 1, f.count("unfinished batch"))
	require.Equal(t, 1, f.count("WRITE"))
	require.Equal(t, true, f.Events[0].Args["unfinished"])
	require.Equal(t, "00-af-b7-01", f.Events[0].Args["traceparent"])
	b.End(clock.Now(), Outcome{Operation: "write", Error: errors.New("a\xffb")})
	f, unfinished = encoded(t, r)
	require.False(t, unfinished)
	require.Zero(t, f.count("write batch"), "it was too short to be kept")
}

func TestAnAnswerBeforeTheSendingCallReturnsHasNoWait(t *testing.T) {
	r := unwritten(Options{})
	b := r.Begin(1, "", clock.Now())
	c := r.Connection("peer", [16]byte{1}, 1)
	number := c.Take(b, true, 100, clock.Now())
	b.Ended(number, clock.Now())
	b.Sent(number, clock.Now())
	b.End(clock.Now(), Outcome{Operation: "write"})
	f, _ := encoded(t, r)
	require.Zero(t, f.count("wait for the peer"))
	require.Equal(t, 1, f.count("send"))
	require.Equal(t, 1, f.count("acknowledged"))
}

func TestABatchThatFailedSaysWhy(t *testing.T) {
	r := unwritten(Options{})
	r.Begin(1, "", clock.Now()).End(clock.Now(), Outcome{Operation: "read", Requests: 2, Failed: 1, Error: errors.New("a\xffb \"quoted\"")})
	f, _ := encoded(t, r)
	require.Equal(t, "a\uFFFDb \"quoted\"", f.Events[0].Args["error"])
	require.EqualValues(t, 1, f.Events[0].Args["failed"])
}

// TestEventsOfATrackDoNotCross has many goroutines record, and checks that of two events of one track one is inside the other, or
// they are apart.
func TestEventsOfATrackDoNotCross(t *testing.T) {
	r := unwritten(Options{Batches: 100})
	var working sync.WaitGroup
	for worker := range 8 {
		working.Go(func() {
			c := r.Connection("peer", [16]byte{byte(worker)}, uint64(worker%4))
			s := r.Session("address")
			for i := range 20 {
				b := r.Begin(uint64(100*worker+i), "", clock.Now())
				began := clock.Now()
				one, other := c.Take(b, i%2 == 0, 10, clock.Now()), c.Take(b, i%3 == 0, 10, clock.Now())
				b.Copied(CopyOut, "npu:0", 10, began)
				b.Sent(one, clock.Now())
				b.Answered(other, clock.Now()) // before it was noted that it was sent
				b.Sent(other, clock.Now())
				b.Answered(one, clock.Now())
				b.Ended(one, clock.Now())
				if i%4 == 0 {
					b.Lost(other)
				}
				s.Answered([]Served{s.Next(Served{Write: true, Began: began, Received: clock.Now()}), s.Next(Served{Began: clock.Now()})}, began, clock.Now())
				b.End(clock.Now(), Outcome{Operation: "mixed"})
			}
		})
	}
	working.Wait()
	f, _ := encoded(t, r)
	require.NotZero(t, f.count("copy out"))
	type thread struct{ pid, tid int }
	open := map[thread][]float64{} // ends of the events that the next one may be in
	last := map[thread]float64{}
	for _, e := range f.Events {
		if e.Ph != "X" {
			continue
		}
		at := thread{e.Pid, e.Tid}
		require.GreaterOrEqual(t, e.Ts, last[at])
		last[at] = e.Ts
		ends := e.Ts + e.Dur
		const rounding = 1e-3
		for len(open[at]) > 0 && open[at][len(open[at])-1] <= e.Ts+rounding {
			open[at] = open[at][:len(open[at])-1]
		}
		if n := len(open[at]); n > 0 {
			require.LessOrEqual(t, ends, open[at][n-1]+rounding, "%v", e)
		}
		open[at] = append(open[at], ends)
	}
}

func TestBothSidesNameARequestAlike(t *testing.T) {
	r := unwritten(Options{})
	origin := [16]byte{1, 2}
	c, s := r.Connection("peer", origin, 9), r.Session("address")
	s.Greeted(origin, 9)
	b := r.Begin(1, "", clock.Now())
	for range 2 {
		b.Ended(c.Take(b, true, 1, clock.Now()), clock.Now())
		s.Answered([]Served{s.Next(Served{Write: true, Began: clock.Now(), Received: clock.Now()})}, 0, 0)
	}
	b.End(clock.Now(), Outcome{Operation: "write"})
	f, _ := encoded(t, r)
	flows := map[string]string{}
	for _, e := range f.Events {
		if e.Cat == "flow" {
			flows[e.ID] += e.Ph
		}
	}
	require.Len(t, flows, 2)
	for id, phases := range flows {
		require.Equal(t, "sf", phases, id)
	}
	require.NotEqual(t, connectionKey(origin, 9), connectionKey(origin, 10))
	require.Zero(t, connectionKey(origin, 0))
}

func TestTheBestMeasurementOfAClockIsKeptUntilItIsOld(t *testing.T) {
	r := unwritten(Options{})
	zero := func() (time.Duration, time.Duration) {
		f, _ := encoded(t, r)
		require.Len(t, f.About.Engines[0].Clocks, 1)
		c := f.About.Engines[0].Clocks[0]
		require.Equal(t, "11", c.Identity)
		return time.Duration(c.Zero), time.Duration(c.Error)
	}
	r.Met("peer", "11", 10*time.Second, 10*time.Second+100*time.Microsecond, time.Second)
	at, wrong := zero()
	require.Equal(t, 9*time.Second+50*time.Microsecond, at)
	require.Equal(t, 50*time.Microsecond, wrong)
	r.Met("peer", "11", 11*time.Second, 11*time.Second+200*time.Microsecond, 2*time.Second)
	_, wrong = zero()
	require.Equal(t, 50*time.Microsecond, wrong, "the first one was better")
	r.Met("peer", "11", 100*time.Second, 100*time.Second+200*time.Microsecond, 91*time.Second)
	_, wrong = zero()
	require.Equal(t, 100*time.Microsecond, wrong, "meanwhile it is not known to be")
	for i := range 2 * mostClocks {
		r.Met("peer", fmt.Sprint(i), 1, 2, 0)
	}
	require.Len(t, r.clocks, mostClocks)
}

// opened is an engine with a file, until it is closed.
func opened(t *testing.T, path string, log *zap.Logger) *Recorder {
	t.Helper()
	r := Open("host:1", "0123456789abcdef", Options{File: path, Batches: 10, Log: log})
	t.Cleanup(func() {
		files.Lock()
		defer files.Unlock()
		delete(files.byPath, path)
	})
	return r
}

func TestTheFileIsWrittenAtTheEndAndHasEnginesThatEndedBefore(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	path := filepath.Join(t.TempDir(), "trace.json")
	for i := range mostEnded + 3 {
		r := opened(t, path, zap.NewNop())
		r.Begin(uint64(i), "", clock.Now()).End(clock.Now(), Outcome{Operation: "read"})
		r.Close()
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode())
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		var f found
		require.NoError(t, json.Unmarshal(text, &f))
		require.Equal(t, min(i+1, mostEnded), f.count("read batch"))
	}
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestTheFileIsWrittenWhileTheEngineWorks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace.json")
	r := opened(t, path, zap.NewNop())
	defer r.Close()
	r.Begin(1, "", clock.Now()).End(clock.Now(), Outcome{Operation: "read"})
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(path)
		return err == nil && bytes.Contains(text, []byte("read batch"))
	}, 30*time.Second, 10*time.Millisecond)
}

func TestNeitherLinksNorDevicesAreWrittenTo(t *testing.T) {
	folder := t.TempDir()
	precious := filepath.Join(folder, "precious")
	require.NoError(t, os.WriteFile(precious, []byte("old"), 0o644))
	link := filepath.Join(folder, "link")
	require.NoError(t, os.Symlink(precious, link))
	for _, path := range []string{link, "/dev/full", filepath.Join(folder, "no", "such"), folder} {
		observed, lines := observer.New(zap.WarnLevel)
		r := opened(t, path, zap.New(observed))
		_, err := r.file.write()
		require.Error(t, err)
		r.file.tell(zap.New(observed), err)
		r.Close()
		require.Len(t, lines.All(), 1, "it is said once: %s", path)
		require.Equal(t, path, lines.All()[0].ContextMap()["KVFERRY_TRACE_FILE"])
	}
	text, err := os.ReadFile(precious)
	require.NoError(t, err)
	require.Equal(t, "old", string(text))
	info, err := os.Stat("/dev/full")
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&os.ModeCharDevice)
}

func TestWhatAKilledProcessHasBegunToWriteIsReplacedAndALinkInItsPlaceIsNotFollowed(t *testing.T) {
	folder := t.TempDir()
	precious := filepath.Join(folder, "precious")
	require.NoError(t, os.WriteFile(precious, []byte("old"), 0o644))
	path := filepath.Join(folder, "trace.json")
	require.NoError(t, os.Symlink(precious, fmt.Sprintf("%s.%d.new", path, os.Getpid())))
	opened(t, path, zap.NewNop()).Close()
	require.FileExists(t, path)
	text, err := os.ReadFile(precious)
	require.NoError(t, err)
	require.Equal(t, "old", string(text))
}

// full is a disk that takes only so many bytes.
type full struct{ room int }

func (f *full) Write(b []byte) (int, error) {
	if len(b) > f.room {
		return f.room, errors.New("no space")
	}
	f.room -= len(b)
	return len(b), nil
}

func TestAFullDiskIsAnErrorWhereverItBecomesFull(t *testing.T) {
	r := unwritten(Options{})
	r.Begin(1, "", clock.Now()).End(clock.Now(), Outcome{Operation: "read"})
	for room := range 300 {
		_, err := encode(&full{room}, []*Recorder{r})
		require.Error(t, err)
	}
}

// BenchmarkEncode writes a full file.
func BenchmarkEncode(b *testing.B) {
	r := unwritten(Options{Batches: 256})
	c, s := r.Connection("10.0.0.1:15000", [16]byte{1}, 3), r.Session("10.0.0.2:33000")
	for i := range 256 {
		batch := r.Begin(uint64(i), "", clock.Now())
		for range 32 {
			n := c.Take(batch, true, 1<<20, clock.Now())
			batch.Sent(n, clock.Now())
			batch.Answered(n, clock.Now())
			batch.Ended(n, clock.Now())
		}
		batch.End(clock.Now(), Outcome{Operation: "write"})
		for range servedPerBatch {
			s.Answered([]Served{s.Next(Served{Write: true, Began: clock.Now(), Received: clock.Now()})}, 0, 0)
		}
	}
	for b.Loop() {
		if _, err := encode(io.Discard, []*Recorder{r}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBatch records a batch of one request.
func BenchmarkBatch(b *testing.B) {
	r := unwritten(Options{Batches: 256})
	c := r.Connection("10.0.0.1:15000", [16]byte{1}, 3)
	b.ReportAllocs()
	for b.Loop() {
		batch := r.Begin(1, "", clock.Now())
		n := c.Take(batch, true, 1<<20, clock.Now())
		batch.Sent(n, clock.Now())
		batch.Answered(n, clock.Now())
		batch.Ended(n, clock.Now())
		batch.End(clock.Now(), Outcome{Operation: "write"})
	}
}
