package trace

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
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

func (m micros) MarshalJSON() ([]byte, error) { return appendMicros(nil, time.Duration(m)), nil }

// event is one of Chrome's: complete (X), with a duration, instant (i), metadata (M), or the beginning or the end of a flow (s, f).
type event struct {
	phase          byte
	name, category string
	at             time.Duration // of clock.Now; not of metadata
	length         time.Duration // of a complete event
	thread         int
	id             string // of a flow
	args           *args
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
	now, date := clock.NowAndDate()
	w := &writer{to: to, now: now, shift: clock.Ahead()}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	known := about{
		Format: formatName, BootID: strings.TrimSpace(string(boot)), Engines: []aboutEngine{},
		Unix: float64(date.UnixMicro())/1e6 - (now + w.shift).Seconds(),
	}
	w.bytes([]byte(`{"displayTimeUnit":"ns","traceEvents":[`))
	for i, r := range recorders {
		w.process, w.tracks, w.groups = i+1, nil, map[group][]*track{}
		known.Engines = append(known.Engines, w.engine(r))
	}
	w.bytes([]byte("\n],\"otherData\":"))
	w.json(known)
	w.bytes([]byte("}\n"))
	return w.unfinished, w.err
}

// writer writes the events of one engine after the other. A file may have a hundred thousand, and the process has other work: so
// they are not written by way of reflection.
type writer struct {
	to         io.Writer
	err        error // the first one
	line       []byte
	some       bool // events were written
	now        time.Duration
	shift      time.Duration // from clock.Now to the times of the file
	unfinished bool

	process int
	tracks  []*track // of the engine
	groups  map[group][]*track
	with    args
}

// track is a thread of the file.
type track struct {
	thread int
	name   string
	ends   time.Duration // of its last event
}

// group is the tracks of one kind.
type group struct {
	what, where string
	connection  uint64 // 0 for none
}

func (g group) String() string {
	text := strings.TrimSpace(g.what + " " + g.where)
	if g.connection != 0 {
		text = fmt.Sprintf("%s, connection %d", text, g.connection)
	}
	return text
}

func (w *writer) bytes(b []byte) {
	if w.err == nil {
		_, w.err = w.to.Write(b)
	}
}

func (w *writer) json(v any) {
	text, err := json.Marshal(v)
	w.err = cmp.Or(w.err, err)
	w.bytes(text)
}

// args are the arguments of an event, as JSON without the braces.
type args struct{ text []byte }

func (a *args) key(key string) {
	if len(a.text) > 0 {
		a.text = append(a.text, ',')
	}
	a.text = append(append(append(a.text, '"'), key...), '"', ':')
}

func (a *args) number(key string, n uint64) *args {
	a.key(key)
	a.text = strconv.AppendUint(a.text, n, 10)
	return a
}

func (a *args) string(key, text string) *args {
	a.key(key)
	a.text = appendString(a.text, text)
	return a
}

func (a *args) yes(key string) *args {
	a.key(key)
	a.text = append(a.text, "true"...)
	return a
}

// appendString appends text as JSON.
func appendString(to []byte, text string) []byte {
	plain := !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' })
	if plain {
		return append(append(append(to, '"'), text...), '"')
	}
	quoted, _ := json.Marshal(text) // never fails for a string; what is no UTF-8 is replaced
	return append(to, quoted...)
}

// arguments are for the next event.
func (w *writer) arguments() *args {
	w.with.text = w.with.text[:0]
	return &w.with
}

func (w *writer) event(e event) {
	b := append(w.line[:0], ',', '\n')
	if !w.some {
		b = b[1:]
	}
	w.some = true
	b = appendString(append(b, `{"name":`...), e.name)
	if e.category != "" {
		b = appendString(append(b, `,"cat":`...), e.category)
	}
	b = append(append(append(b, `,"ph":"`...), e.phase), `","ts":`...)
	if e.phase == 'M' {
		b = append(b, '0')
	} else {
		b = appendMicros(b, e.at+w.shift)
	}
	switch e.phase {
	case 'X':
		b = appendMicros(append(b, `,"dur":`...), max(0, e.length))
	case 'i':
		b = append(b, `,"s":"t"`...)
	case 'f':
		b = append(b, `,"bp":"e"`...)
	}
	if e.id != "" {
		b = appendString(append(b, `,"id":`...), e.id)
	}
	b = strconv.AppendInt(append(b, `,"pid":`...), int64(w.process), 10)
	b = strconv.AppendInt(append(b, `,"tid":`...), int64(e.thread), 10)
	if e.args != nil {
		b = append(append(append(b, `,"args":{`...), e.args.text...), '}')
	}
	w.line = append(b, '}')
	w.bytes(w.line)
}

// appendMicros appends a time in microseconds.
func appendMicros(to []byte, t time.Duration) []byte {
	to = append(strconv.AppendInt(to, int64(t/1000), 10), '.')
	rest := t % 1000
	return append(to, '0'+byte(rest/100), '0'+byte(rest/10%10), '0'+byte(rest%10))
}

// track finds a track of a group that is free in a time. Later events of the group begin no earlier.
func (w *writer) track(g group, began, ended time.Duration) (thread int) {
	all := w.groups[g]
	at := slices.IndexFunc(all, func(t *track) bool { return t.ends <= began })
	if at < 0 {
		name := g.String()
		if at = len(all); at > 0 {
			name = fmt.Sprintf("%s (%d)", name, at+1)
		}
		w.tracks = append(w.tracks, &track{thread: len(w.tracks) + 1, name: name})
		all = append(all, w.tracks[len(w.tracks)-1])
		w.groups[g] = all
	}
	all[at].ends = ended
	return all[at].thread
}

// span writes a complete event.
func (w *writer) span(thread int, name, category string, began, ended time.Duration, with *args) {
	w.event(event{phase: 'X', name: name, category: category, at: began, length: ended - began, thread: thread, args: with})
}

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
	others, limit := r.others, r.batches.limit
	r.mu.Unlock()
	slices.SortFunc(known.Clocks, func(a, b aboutClock) int { return cmp.Compare(a.Identity, b.Identity) })

	var steps []stepOf
	described := make([]*Batch, 0, len(batches))
	for _, b := range batches {
		described = append(described, b.described())
	}
	if others != nil {
		for _, b := range others(limit) {
			described = append(described, &Batch{recorder: r, number: b.Number, began: b.Began, onlyNumber: true})
		}
	}
	slices.SortStableFunc(described, func(a, b *Batch) int { return cmp.Compare(a.began, b.began) })
	for _, b := range described {
		w.batch(b)
		for i := range b.steps {
			steps = append(steps, stepOf{&b.steps[i], b})
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
	name := fmt.Sprintf("engine %s, process %d", r.name, os.Getpid())
	w.event(event{phase: 'M', name: "process_name", args: w.arguments().string("name", name)})
	for _, t := range w.tracks {
		w.event(event{phase: 'M', name: "thread_name", thread: t.thread, args: w.arguments().string("name", t.name)})
		w.event(event{phase: 'M', name: "thread_sort_index", thread: t.thread, args: w.arguments().number("sort_index", uint64(t.thread))})
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
	with := w.arguments().number("batch", b.number).string("trace_id", b.ID()).number("steps_left_out", b.leftOut.Load())
	if b.parent != "" {
		with.string("traceparent", b.parent)
	}
	if b.onlyNumber {
		with.yes("not_recorded")
	}
	if open {
		with.yes("unfinished")
	} else {
		with.number("requests", b.Requests).number("failed", b.Failed).number("bytes", b.Bytes)
	}
	if b.Error != nil {
		with.string("error", b.Error.Error())
	}
	ended = max(ended, b.began)
	thread := w.track(group{what: "batches"}, b.began, ended)
	w.span(thread, cmp.Or(b.Operation, "unfinished")+" batch", "batch", b.began, ended, with)
	if queued := min(cmp.Or(b.first, ended), ended); queued > b.began && !b.onlyNumber {
		w.span(thread, "queue", "queue", b.began, queued, nil)
	}
}

// stepOf is a step of a batch.
type stepOf struct {
	*step
	batch *Batch
}

func (w *writer) step(s stepOf) {
	ended := s.ended
	if s.underWay > 0 {
		ended = 0
	}
	if s.batch.ended != 0 { // a step that did not end before is over, too
		ended = min(cmp.Or(ended, s.batch.ended), s.batch.ended)
	}
	ended, open := w.until(ended)
	ended = max(ended, s.began)
	allLost := s.lost > 0 && s.lost == s.requests
	bytes := s.bytes
	if !allLost {
		bytes -= s.lostBytes
	}
	with := w.arguments().number("batch", s.batch.number).number("bytes", bytes)
	if open {
		with.yes("unfinished")
	}
	if s.kind != request {
		thread := w.track(group{what: s.kind.String(), where: s.where}, s.began, ended)
		w.span(thread, s.kind.String(), "copy", s.began, ended, with)
		return
	}
	if allLost {
		with.yes("lost")
	} else if s.lost > 0 {
		with.number("lost_requests", s.lost)
	}
	c := s.connection
	thread := w.track(group{"to", c.peer, c.number}, s.began, ended)
	w.span(thread, operationOf(s.write), "request", s.began, ended, with.number("request", s.number).number("requests", s.requests))
	w.flows('s', c.key, s.number, s.requests, s.began, thread)
	answered := min(cmp.Or(s.answered, ended), ended)
	sent := min(cmp.Or(s.sent, answered), answered)
	w.span(thread, "send", "send", s.began, sent, nil)
	if sent < answered { // otherwise the answer came before the call that sends had returned
		w.span(thread, "wait for the peer", "peer", sent, answered, nil)
	}
	switch {
	case open || allLost || s.ended == 0 || s.underWay > 0:
	case s.write:
		w.event(event{phase: 'i', name: "acknowledged", category: "peer", at: answered, thread: thread})
	case ended > answered:
		w.span(thread, "receive", "receive", answered, ended, nil)
	}
}

// flows writes an end of the flow of each request from a number on, if the connection has a key.
func (w *writer) flows(phase byte, key, number, requests uint64, at time.Duration, thread int) {
	if key == 0 {
		return
	}
	for i := range requests {
		w.event(event{phase: phase, name: "request", category: "flow", at: at, thread: thread, id: requestKey(key, number+i)})
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
	thread := w.track(group{what: "from", where: s.session.peer}, s.Began, s.answered)
	with := w.arguments().number("bytes", s.Bytes).number("request", s.number).number("requests", s.requests)
	w.span(thread, operationOf(s.Write), "served", s.Began, s.answered, with)
	w.flows('f', s.session.key, s.number, s.requests, s.Began, thread)
	from := s.Began
	if s.Write && !s.ByAddress {
		from = min(max(s.Received, s.Began), s.answered)
		w.span(thread, "receive", "receive", s.Began, from, nil)
	}
	if s.OnDevice || s.Write && s.ByAddress {
		name := "copy out"
		switch {
		case s.ByAddress:
			name = Fetch.String()
		case s.Write:
			name = "copy in"
		}
		began := min(max(s.copying, from), s.answered)
		from = min(max(s.copied, began), s.answered)
		w.span(thread, name, "copy", began, from, nil)
	}
	w.span(thread, "answer", "answer", from, s.answered, nil)
}
