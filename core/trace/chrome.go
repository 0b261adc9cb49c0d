package trace

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"kvferry/core/clock"
)

// The file is a JSON object in Chrome's trace format, which Perfetto opens:
//
//  1. An engine is a process there. A track of it, a thread there, has events that do not overlap, with others inside of them.
//  2. There are tracks for batches, for the requests on each connection, for the copies of each device, and for the requests of
//     each peer that the engine has served. What overlaps gets further tracks.
//  3. A flow connects a request with the same request at the peer, where the files of both were merged.
//  4. otherData has what it takes to merge files: whose clocks the engines know.
//
// All times are microseconds since the machine has started.

// formatName is that of what is in otherData.
const formatName = "kvferry-trace-1"

// micros is a time in the file.
type micros time.Duration

func (m micros) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%d.%03d", m/1000, m%1000), nil
}

// event is one of Chrome's: complete (X), with a duration, instant (i), metadata (M), or the beginning or the end of a flow (s, f).
type event struct {
	Name     string  `json:"name"`
	Category string  `json:"cat,omitempty"`
	Phase    string  `json:"ph"`
	Time     micros  `json:"ts"`
	Duration *micros `json:"dur,omitempty"`
	Process  int     `json:"pid"`
	Thread   int     `json:"tid"`
	Scope    string  `json:"s,omitempty"`  // of an instant event
	ID       string  `json:"id,omitempty"` // of a flow
	Bind     string  `json:"bp,omitempty"` // of the end of a flow
	Args     any     `json:"args,omitempty"`
}

// about is otherData.
type about struct {
	Format  string        `json:"format"`
	BootID  string        `json:"boot_id"`              // files with the same one have one clock
	Unix    float64       `json:"unix_seconds_of_zero"` // the date at which times are 0, by this machine
	Engines []aboutEngine `json:"engines"`
}

type aboutEngine struct {
	Process   int          `json:"pid"` // in the file
	ProcessID int          `json:"process"`
	Name      string       `json:"name"`
	Identity  string       `json:"identity"`
	Began     micros       `json:"began_us"` // of its age
	Clocks    []aboutClock `json:"clocks"`   // of other engines
}

type aboutClock struct {
	Name     string `json:"name"`
	Identity string `json:"identity"`
	Zero     micros `json:"began_us"` // of the other engine's age, by the clock of this file
	Error    micros `json:"error_us"` // by how much that may be wrong
}

// encode writes the file. unfinished says that something in it has not ended.
func encode(to io.Writer, recorders []*Recorder) (unfinished bool, err error) {
	w := &writer{to: to, now: clock.Now(), shift: clock.SinceBoot() - clock.Now()}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	known := about{
		Format: formatName, BootID: strings.TrimSpace(string(boot)), Engines: []aboutEngine{},
		Unix: float64(time.Now().UnixMicro())/1e6 - clock.SinceBoot().Seconds(),
	}
	w.text(`{"displayTimeUnit":"ns","traceEvents":[`)
	for i, r := range recorders {
		w.process, w.tracks = i+1, nil
		known.Engines = append(known.Engines, w.engine(r))
	}
	w.text("\n],\"otherData\":")
	w.json(known)
	w.text("}\n")
	return w.unfinished, w.err
}

// writer writes the events of one engine after the other.
type writer struct {
	to         io.Writer
	err        error // the first one
	some       bool  // events were written
	now        time.Duration
	shift      time.Duration // from clock.Now to the times of the file
	unfinished bool

	process int
	tracks  []*track // of the engine
}

// track is a thread of the file.
type track struct {
	group string
	ends  time.Duration // of its last event
}

func (w *writer) text(s string) {
	if w.err == nil {
		_, w.err = io.WriteString(w.to, s)
	}
}

func (w *writer) json(v any) {
	text, err := json.Marshal(v)
	w.err = cmp.Or(w.err, err)
	w.text(string(text))
}

func (w *writer) event(e event) {
	if w.some {
		w.text(",\n")
	} else {
		w.text("\n")
	}
	w.some = true
	e.Process = w.process
	w.json(e)
}

// track finds a track of a group that is free in a time, and is not for later events free before.
func (w *writer) track(group string, began, ended time.Duration) (thread int) {
	at := slices.IndexFunc(w.tracks, func(t *track) bool { return t.group == group && t.ends <= began })
	if at < 0 {
		at = len(w.tracks)
		w.tracks = append(w.tracks, &track{group: group})
	}
	w.tracks[at].ends = ended
	return at + 1
}

// span writes a complete event.
func (w *writer) span(thread int, name, category string, began, ended time.Duration, args any) {
	length := micros(max(0, ended-began))
	w.event(event{Name: name, Category: category, Phase: "X", Time: w.at(began), Duration: &length, Thread: thread, Args: args})
}

func (w *writer) at(t time.Duration) micros { return micros(t + w.shift) }

// args are the arguments of an event.
type args map[string]any

// engine writes the events of an engine.
func (w *writer) engine(r *Recorder) aboutEngine {
	r.mu.Lock()
	known := aboutEngine{
		Process: w.process, ProcessID: os.Getpid(), Name: r.name, Identity: r.identity, Began: micros(r.began), Clocks: []aboutClock{},
	}
	for identity, c := range r.clocks {
		known.Clocks = append(known.Clocks, aboutClock{c.name, identity, micros(c.zero), micros(c.error)})
	}
	batches, served := r.batches.all(), r.served.all()
	for b := r.underWay.next; b != &r.underWay; b = b.next {
		batches = append(batches, b)
	}
	r.mu.Unlock()
	slices.SortFunc(known.Clocks, func(a, b aboutClock) int { return cmp.Compare(a.Identity, b.Identity) })

	var steps []stepOf
	described := make([]*Batch, 0, len(batches))
	for _, b := range batches {
		described = append(described, b.described())
	}
	slices.SortStableFunc(described, func(a, b *Batch) int { return cmp.Compare(a.began, b.began) })
	for _, b := range described {
		w.batch(b)
		for _, s := range b.steps {
			steps = append(steps, stepOf{s, b})
		}
	}
	slices.SortStableFunc(steps, func(a, b stepOf) int { return cmp.Compare(a.began, b.began) })
	for _, s := range steps {
		w.step(s)
	}
	slices.SortStableFunc(served, func(a, b Served) int { return cmp.Compare(a.Began, b.Began) })
	for i := range served {
		w.served(&served[i])
	}
	w.names(r)
	return known
}

// names writes what the engine and its tracks are called.
func (w *writer) names(r *Recorder) {
	w.event(event{Name: "process_name", Phase: "M", Args: args{"name": fmt.Sprintf("engine %s, process %d", r.name, os.Getpid())}})
	numbers := map[string]int{}
	for i, t := range w.tracks {
		numbers[t.group]++
		name := t.group
		if n := numbers[t.group]; n > 1 {
			name = fmt.Sprintf("%s (%d)", t.group, n)
		}
		w.event(event{Name: "thread_name", Phase: "M", Thread: i + 1, Args: args{"name": name}})
		w.event(event{Name: "thread_sort_index", Phase: "M", Thread: i + 1, Args: args{"sort_index": i}})
	}
}

// until is when something has ended, or now if it has not.
func (w *writer) until(ended time.Duration) (at time.Duration, open bool) {
	if ended == 0 {
		w.unfinished = true
		return w.now, true
	}
	return ended, false
}

func (w *writer) batch(b *Batch) {
	ended, open := w.until(b.ended)
	operation := cmp.Or(b.Operation, "unfinished")
	with := args{"batch": b.number, "trace_id": b.ID(), "steps_left_out": b.leftOut}
	if open {
		with["unfinished"] = true
	} else {
		with["requests"], with["failed"], with["bytes"] = b.Requests, b.Failed, b.Bytes
	}
	if b.Error != nil {
		with["error"] = strings.ToValidUTF8(b.Error.Error(), "\uFFFD")
	}
	ended = max(ended, b.began)
	thread := w.track("batches", b.began, ended)
	w.span(thread, operation+" batch", "batch", b.began, ended, with)
	if queued := min(cmp.Or(b.first, ended), ended); queued > b.began {
		w.span(thread, "queue", "queue", b.began, queued, nil)
	}
}

// stepOf is a step of a batch.
type stepOf struct {
	step
	batch *Batch
}

func (w *writer) step(s stepOf) {
	ended := s.ended
	if s.batch.ended != 0 { // a step that did not end before is over, too
		ended = min(cmp.Or(ended, s.batch.ended), s.batch.ended)
	}
	ended, open := w.until(ended)
	ended = max(ended, s.began)
	with := args{"batch": s.batch.number, "bytes": s.bytes}
	if open {
		with["unfinished"] = true
	}
	if s.lost {
		with["lost"] = true
	}
	if s.kind != request {
		thread := w.track(strings.TrimSpace(s.kind.String()+" "+s.where), s.began, ended)
		w.span(thread, s.kind.String(), "copy", s.began, ended, with)
		return
	}
	group := "to " + s.where
	if s.connection != 0 {
		group = fmt.Sprintf("%s, connection %d", group, s.connection)
	}
	thread := w.track(group, s.began, ended)
	with["request"] = s.number
	w.span(thread, operationOf(s.write), "request", s.began, ended, with)
	if s.key != 0 {
		w.event(event{Name: "request", Category: "flow", Phase: "s", Time: w.at(s.began), Thread: thread, ID: requestKey(s.key, s.number)})
	}
	answered := min(cmp.Or(s.answered, ended), ended)
	sent := min(cmp.Or(s.sent, answered), answered)
	w.span(thread, "send", "send", s.began, sent, nil)
	if s.sent == 0 {
		return
	}
	w.span(thread, "wait for the peer", "peer", sent, answered, nil)
	switch {
	case s.answered == 0 || s.lost:
	case s.write:
		w.event(event{Name: "acknowledged", Category: "peer", Phase: "i", Time: w.at(answered), Thread: thread, Scope: "t"})
	default:
		w.span(thread, "receive", "receive", answered, ended, nil)
	}
}

func operationOf(write bool) string {
	if write {
		return "WRITE"
	}
	return "READ"
}

// served writes a request that the engine has served.
func (w *writer) served(s *Served) {
	thread := w.track("from "+s.peer, s.Began, s.answered)
	w.span(thread, operationOf(s.Write), "served", s.Began, s.answered, args{"bytes": s.Bytes, "request": s.number})
	if s.key != 0 {
		w.event(event{Name: "request", Category: "flow", Phase: "f", Bind: "e", Time: w.at(s.Began), Thread: thread, ID: requestKey(s.key, s.number)})
	}
	from := s.Began
	if s.Write && !s.ByAddress {
		from = min(max(s.Received, s.Began), s.answered)
		w.span(thread, "receive", "receive", s.Began, from, nil)
	}
	if s.OnDevice || s.Write && s.ByAddress {
		name := map[bool]string{true: "copy in", false: "copy out"}[s.Write]
		if s.ByAddress {
			name = Fetch.String()
		}
		began := min(max(s.copying, from), s.answered)
		from = min(max(s.copied, began), s.answered)
		w.span(thread, name, "copy", began, from, nil)
	}
	w.span(thread, "answer", "answer", from, s.answered, nil)
}
