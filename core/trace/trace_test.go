package trace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
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

// now is a moment of its own.
func now() *Moment { return new(Moment) }

// unwritten is a recorder whose file is never written, and which leaves nothing out.
func unwritten(o Options) *Recorder {
	r := sampling(o)
	r.batchesLeft.most, r.turnsLeft.most = math.MaxInt, math.MaxInt
	return r
}

// sampling is a recorder whose file is never written. It records nothing more once its allowance is used up.
func sampling(o Options) *Recorder {
	o.Batches = max(o.Batches, 1)
	r := newRecorder("host:1", "0123456789abcdef", o, &file{changed: make(chan struct{}, 1)})
	r.batchesLeft.size, r.turnsLeft.size = time.Hour<<10, time.Hour<<10
	return r
}

func TestWhatIsNotTracedIsRecordedByNobody(t *testing.T) {
	r := Open("host:1", "00", Options{})
	require.Nil(t, r)
	r.Listening(1)
	r.Met("peer", "11", 1, 2, 3)
	b, c, s := r.Begin(1, "", 1), r.Connection("peer", [16]byte{}, 1), r.Session("peer")
	require.Nil(t, b)
	require.Zero(t, c.Take(b, true, 1, now()))
	require.Zero(t, b.Now())
	require.Zero(t, s.Now())
	s.Greeted([16]byte{}, 1)
	s.Answered([]Served{{}}, 1, 1)
	b.Copied(Local, "", 1, 1)
	for _, note := range []func(int32, *Moment){b.Sent, b.Answered, b.Ended} {
		note(1, now())
	}
	b.Lost(1, 1)
	r.Close()
	require.Zero(t, testing.AllocsPerRun(10, func() { c.Take(r.Begin(1, "", 1), true, 1, now()); b.Ended(1, now()) }))
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
		b.Ended(c.Take(b, true, 1, now()), now())
	}
	require.Zero(t, c.Take(b, true, 1, now()))
	b.Copied(Local, "", 1, clock.Now())
	b.Ended(0, now())
	b.End(clock.Now(), Outcome{Operation: "write"})
	require.Zero(t, c.Take(b, true, 1, now()), "nothing is added to what has ended")
	f, _ := encoded(t, r)
	require.Equal(t, mostSteps, f.count("WRITE"))
	require.EqualValues(t, 3, f.Events[0].Args["steps_left_out"])
}

func TestOfManyBatchesInAWindowOnlySoManyAreRecordedAsTheFileHas(t *testing.T) {
	for _, slower := range []time.Duration{0, time.Millisecond} {
		r := sampling(Options{Batches: 4, Slower: slower})
		for i := range 20 {
			b := r.Begin(uint64(i), "", clock.Now())
			if b == nil {
				continue
			}
			for range i % 2 { // where there is a limit, only what is kept counts
				b.began -= 2 * slower
			}
			b.End(clock.Now(), Outcome{Operation: "read"})
		}
		f, _ := encoded(t, r)
		require.Equal(t, 4, f.count("read batch"))
		require.True(t, r.batchesLeft.used.Load())
		const span = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
		require.Nil(t, r.Begin(21, "", clock.Now()))
		require.Nil(t, r.Begin(22, span+"00", clock.Now()))
		require.NotNil(t, r.Begin(23, span+"01", clock.Now()), "the program records it")
	}
}

func TestOfManyAnswersInAWindowOnlySomeAreRecordedAndTheOtherRequestsAreCounted(t *testing.T) {
	r := sampling(Options{Batches: 1})
	s := r.Session("address")
	s.Greeted([16]byte{1}, 1)
	s.Answered(s.Record(nil, Served{Began: s.Now(), Bytes: shortTurn + 1}), 0, 0) // not counted
	for range turnsPerBatch {
		s.Answered(s.Record(nil, Served{Began: s.Now()}), 0, 0)
	}
	require.Zero(t, s.Now(), "the clock is not read, either")
	require.True(t, r.turnsLeft.used.Load())
	require.Empty(t, s.Record(nil, Served{Began: s.Now()}))
	r.turnsLeft.used.Store(false)
	s.Answered(s.Record(nil, Served{Began: s.Now()}), 0, 0)
	f, _ := encoded(t, r)
	var numbers []any
	for _, e := range f.Events {
		if e.Cat == "served" {
			numbers = append(numbers, e.Args["request"])
		}
	}
	require.Equal(t, []any{1., 2., 3., 5.}, numbers, "the initiator counts alike")
}

func TestRecordingGoesOnInTheNextWindow(t *testing.T) {
	r := sampling(Options{Batches: 1})
	r.batchesLeft.size = time.Millisecond
	r.Begin(1, "", clock.Now()).End(clock.Now(), Outcome{})
	require.Eventually(t, func() bool { return r.Begin(2, "", clock.Now()) != nil }, 30*time.Second, time.Millisecond)
}

func TestWindowsBeginAtTheSameDatesInAllProcesses(t *testing.T) {
	const size = time.Hour
	for range 3 {
		a := allowance{most: 2, size: size}
		now := clock.Now()
		a.spend(now)
		ends := time.Now().Add(a.ends - clock.Now()).Round(time.Second)
		require.Equal(t, ends.Truncate(size), ends)
	}
}

func TestABatchUnderWayThatIsNotRecordedIsInTheFileWithoutSteps(t *testing.T) {
	r := unwritten(Options{Batches: 2, UnderWay: func(most int) []UnderWay {
		return []UnderWay{{Number: 9, Began: 1}, {Number: 10, Began: 2}}[:most]
	}})
	f, unfinished := encoded(t, r)
	require.True(t, unfinished)
	require.Equal(t, 2, f.count("unfinished batch"))
	require.Zero(t, f.count("queue"), "nobody knows")
	require.Equal(t, true, f.Events[0].Args["not_recorded"])
}

func TestSmallRequestsThatAreSentTogetherAreOneStep(t *testing.T) {
	r := unwritten(Options{})
	b := r.Begin(1, "", clock.Now())
	c := r.Connection("peer", [16]byte{1}, 1)
	together := now()
	first, second := c.Take(b, false, 10, together), c.Take(b, false, 20, together)
	require.Equal(t, first, second)
	large := c.Take(b, false, smallRequest+1, together)
	require.NotEqual(t, first, large)
	require.NotEqual(t, large, c.Take(b, false, 1, together), "a large one has an event of its own")
	write := c.Take(b, true, 1, together)
	c.Take(nil, true, 1, together) // of a batch that is not recorded
	require.NotEqual(t, write, c.Take(b, true, 1, together))
	later := c.Take(b, true, 1, &Moment{at: together.at + 1})
	require.NotEqual(t, write, later)

	b.Answered(first, now())
	b.Ended(first, now())
	f, _ := encoded(t, r)
	read := f.Events[2]
	require.Equal(t, "READ", read.Name)
	require.EqualValues(t, 30, read.Args["bytes"])
	require.EqualValues(t, 2, read.Args["requests"])
	require.Equal(t, true, read.Args["unfinished"], "one of the two has not ended")
	b.Lost(first, 20)
	b.Lost(large, smallRequest+1)
	b.Lost(write, 1)
	b.End(clock.Now(), Outcome{Operation: "mixed"})
	f, _ = encoded(t, r)
	read = f.Events[2]
	require.EqualValues(t, 10, read.Args["bytes"], "the lost one is another step, or failed")
	require.EqualValues(t, 1, read.Args["lost_requests"])
	require.NotContains(t, read.Args, "lost")
	lost := 0
	for _, e := range f.Events {
		if e.Args["lost"] == true {
			lost++
		}
	}
	require.Equal(t, 2, lost)
	flows := 0
	for _, e := range f.Events {
		if e.Ph == "s" {
			flows++
		}
	}
	require.Equal(t, 7, flows, "one for each request")
}

func TestSmallRequestsThatComeTogetherAreOneEventWithAFlowForEach(t *testing.T) {
	r := unwritten(Options{})
	s := r.Session("address")
	s.Greeted([16]byte{1}, 1)
	var all []Served
	for range mostTogether + 1 {
		all = s.Record(all, Served{Began: 5, Bytes: 10})
	}
	all = s.Record(all, Served{Began: 5, Bytes: smallRequest + 1})
	all = s.Record(all, Served{Began: 5, Bytes: 10, Write: true})
	all = s.Record(all, Served{Began: 6, Bytes: 10, Write: true})
	s.Answered(all, 0, 0)
	f, _ := encoded(t, r)
	var requests, numbers []any
	flows := map[string]bool{}
	for _, e := range f.Events {
		if e.Cat == "served" {
			requests, numbers = append(requests, e.Args["requests"]), append(numbers, e.Args["request"])
		}
		if e.Ph == "f" {
			flows[e.ID] = true
		}
	}
	require.Equal(t, []any{8., 1., 1., 1., 1.}, requests)
	require.Equal(t, []any{1., 9., 10., 11., 12.}, numbers)
	require.Len(t, flows, mostTogether+4)
}

func TestWhatIsUnderWayIsInTheFile(t *testing.T) {
	r := unwritten(Options{Slower: time.Hour})
	b := r.Begin(7, "00-af-b7-01", clock.Now())
	c := r.Connection("peer", [16]byte{1}, 4)
	c.Take(b, true, 100, now())
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
	number := c.Take(b, true, 100, now())
	b.Ended(number, now())
	b.Sent(number, now())
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
				one, other := c.Take(b, i%2 == 0, 10, now()), c.Take(b, i%3 == 0, 10, now())
				b.Copied(CopyOut, "npu:0", 10, began)
				b.Sent(one, now())
				b.Answered(other, now()) // before it was noted that it was sent
				b.Sent(other, now())
				b.Answered(one, now())
				b.Ended(one, now())
				if i%4 == 0 {
					b.Lost(other, 10)
				}
				served := s.Record(nil, Served{Write: true, Began: began, Received: clock.Now()})
				s.Answered(s.Record(served, Served{Began: clock.Now()}), began, clock.Now())
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
		b.Ended(c.Take(b, true, 1, now()), now())
		s.Answered(s.Record(nil, Served{Write: true, Began: clock.Now(), Received: clock.Now()}), 0, 0)
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

// closeWritten closes the only engine of a file, and waits until that is written, however long that takes: Close waits for a second.
func closeWritten(r *Recorder) {
	written := r.file.written
	r.Close()
	<-written
}

func TestTheFileIsWrittenAtTheEndAndHasEnginesThatEndedBefore(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	path := filepath.Join(t.TempDir(), "trace.json")
	for i := range mostEnded + 3 {
		r := opened(t, path, zap.NewNop())
		r.Begin(uint64(i), "", clock.Now()).End(clock.Now(), Outcome{Operation: "read"})
		closeWritten(r)
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
	closeWritten(opened(t, path, zap.NewNop()))
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
			n := c.Take(batch, true, 1<<20, now())
			batch.Sent(n, now())
			batch.Answered(n, now())
			batch.Ended(n, now())
		}
		batch.End(clock.Now(), Outcome{Operation: "write"})
		for range servedPerBatch {
			s.Answered(s.Record(nil, Served{Write: true, Began: clock.Now(), Received: clock.Now()}), 0, 0)
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
		n := c.Take(batch, true, 1<<20, now())
		batch.Sent(n, now())
		batch.Answered(n, now())
		batch.Ended(n, now())
		batch.End(clock.Now(), Outcome{Operation: "write"})
	}
}
