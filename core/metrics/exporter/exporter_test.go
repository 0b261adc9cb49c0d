package exporter

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvferry/core/metrics"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// stats is an engine in which nothing is 0 or empty.
func stats(name string) *metrics.Stats {
	var h metrics.Histogram
	h.Observe(3 * time.Microsecond)
	h.Observe(time.Hour)
	d := h.Distribution()
	moved := metrics.Moved{Requests: 7, Bytes: map[string]uint64{"tcp": 1 << 60, "host": 8, "local": 9}}
	counts := map[string]uint64{"read": 1, "write": 2}
	return &metrics.Stats{
		Version: "1.2", Engine: name, Identity: "id of " + name, Uptime: 2.5,
		Batches:       map[string]metrics.Durations{"read": d.Durations(), "write": d.Durations(), "mixed": d.Durations()},
		FailedBatches: 3, Requests: counts, Bytes: counts, Failures: map[string]uint64{"stalled": 4},
		Unfinished: metrics.Unfinished{Batches: 1, Requests: 2, Bytes: 3},
		Initiator: []metrics.InitiatorPeer{{
			Peer: "a\"b\\c\nd\xff", Read: moved, Write: moved, Failures: map[string]uint64{"stalled": 4}, Retries: 1, Refusals: 2, Connected: 3,
			Lost: 4, Unreachable: 5, Connections: metrics.Connections{Connecting: 1, Idle: 2, Busy: 3, Ending: 4}, Queued: 6, InFlight: 7,
		}},
		Target:        []metrics.TargetPeer{{Peer: "10.0.0.1", Read: moved, Write: moved, Refusals: 1, Lost: 2, Connections: 3}},
		Sessions:      metrics.Sessions{Open: 1, Limit: 2, Waiting: 3, Served: 4, Refused: 5, GaveWay: 6, Failed: 7, Foreign: 8},
		Handshakes:    metrics.Handshakes{Open: 1, Limit: 2, Refused: 3, GaveWay: 4, Answered: map[string]uint64{"probe": 5}, Plain: 6, Failed: 7},
		Notifications: metrics.Notifications{Sent: 1, SendFailures: 2, Received: 3, Refused: 4, Waiting: 5, WaitingBytes: 6},
		Metadata:      map[string]metrics.Calls{"fetch": {Durations: d.Durations(), Failures: 1}, "publish": {Durations: d.Durations()}, "address": {Durations: d.Durations()}},
		Security:      metrics.Security{Mode: "require", Refused: 1, Older: 2, Reloads: 3, FailedReloads: 4, NotAllowed: 5, Failures: []metrics.SecurityFailures{{Peer: "10.0.0.9", Reason: "plain", Count: 6}}},
		Staging:       []metrics.Staging{{Device: "npu:0", Direction: "out", Pool: 1, Leased: 2, Waits: 3, Jobs: 4, Failed: 5, Bytes: 6, Copying: 7.5}},
		Process:       metrics.Process{Goroutines: 1, Threads: 2, OpenFiles: 3, MaxFiles: 4, ResidentBytes: 5, HeapBytes: 6, DroppedLogLines: 7},
	}
}

// attachAt shows an engine until the test ends, or detach is called.
func attachAt(t *testing.T, address string, source Source) (detach func()) {
	t.Helper()
	detach, err := Attach(address, source, zap.NewNop())
	require.NoError(t, err)
	t.Cleanup(detach)
	return detach
}

// client asks a server, by whichever address.
func client(network, address string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}}}
}

func get(t *testing.T, c *http.Client, path string) (code int, kind, body string) {
	t.Helper()
	answer, err := c.Get("http://x" + path)
	require.NoError(t, err)
	defer answer.Body.Close()
	all, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, answer.Header.Get("Content-Type"), string(all)
}

// freePort is a port that nobody listens at now.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestValuesAreWrittenInPrometheusTextFormat(t *testing.T) {
	all := string(text([]*metrics.Stats{stats("one"), stats("two")}, prometheusText))
	for _, line := range []string{
		`# TYPE kvferry_batch_duration_seconds histogram`,
		`kvferry_engine_info{engine="one",identity="id of one",version="1.2"} 1`,
		`kvferry_engine_uptime_seconds{engine="two"} 2.5`,
		`kvferry_batch_duration_seconds_bucket{engine="one",operation="read",le="2e-06"} 0`,
		`kvferry_batch_duration_seconds_bucket{engine="one",operation="read",le="4e-06"} 1`,
		`kvferry_batch_duration_seconds_bucket{engine="one",operation="read",le="67.108864"} 1`,
		`kvferry_batch_duration_seconds_bucket{engine="one",operation="read",le="+Inf"} 2`,
		`kvferry_batch_duration_seconds_count{engine="one",operation="read"} 2`,
		`kvferry_batch_duration_seconds_sum{engine="one",operation="read"} 3600.000003`,
		`kvferry_request_failures_total{engine="one",reason="stalled"} 4`,
		`kvferry_request_failures_total{engine="one",reason="closed"} 0`,
		`kvferry_peer_bytes_total{engine="two",peer="a\"b\\c\nd` + "\uFFFD" + `",operation="read",path="tcp"} 1152921504606846976`,
		`kvferry_staging_copy_seconds_total{engine="one",device="npu:0",direction="out"} 7.5`,
		`process_open_fds 3`,
	} {
		require.Contains(t, all, line+"\n")
	}
	require.Equal(t, 1, strings.Count(all, "\nprocess_open_fds "), "the engines are in one process")
	require.Equal(t, 1, strings.Count(all, "# TYPE kvferry_sessions gauge"))
}

func TestOpenMetricsIsForThoseThatPreferIt(t *testing.T) {
	for accept, want := range map[string]format{
		"": prometheusText, "*/*": prometheusText, "text/plain": prometheusText,
		"application/openmetrics-text": openMetrics,
		"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1": openMetrics,
		"application/openmetrics-text;q=0.5, text/plain":     prometheusText,
		"application/openmetrics-text;q=0, text/plain;q=0":   prometheusText,
		"application/openmetrics-text;q=much":                prometheusText,
		"application/vnd.google.protobuf;q=1, ;;=,text/html": prometheusText,
	} {
		require.Equal(t, want, formatFor([]string{accept}), accept)
	}
	require.Equal(t, openMetrics, formatFor([]string{"text/plain;q=0.1", "application/openmetrics-text;q=0.2"}))
}

func TestABucketHasTheTraceOfABatchInIt(t *testing.T) {
	s := stats("one")
	read := s.Batches["read"]
	read.Exemplars = make([]*metrics.Exemplar, metrics.Bounds+1)
	read.Exemplars[2] = &metrics.Exemplar{TraceID: "01234567-8", Value: 3e-6, At: 1700000000.5}
	read.Exemplars[metrics.Bounds] = &metrics.Exemplar{TraceID: "01234567-9", Value: 3600, At: 1700000001}
	s.Batches["read"] = read
	all := string(text([]*metrics.Stats{s}, openMetrics))
	for _, line := range []string{
		`# TYPE kvferry_batches_failed counter`,
		`kvferry_batches_failed_total{engine="one"} 3`,
		`kvferry_batch_duration_seconds_bucket{engine="one",operation="read",le="4e-06"} 1 # {trace_id="01234567-8"} 3e-06 1700000000.500`,
		`kvferry_batch_duration_seconds_bucket{engine="one",operation="read",le="+Inf"} 2 # {trace_id="01234567-9"} 3600 1700000001.000`,
	} {
		require.Contains(t, all, line+"\n")
	}
	require.True(t, strings.HasSuffix(all, "\n# EOF\n"))
	require.NotContains(t, string(text([]*metrics.Stats{s}, prometheusText)), "trace_id")
}

func TestEveryRowOfTheTableIsWrittenAndNamedAsPrometheusAsks(t *testing.T) {
	all := string(text([]*metrics.Stats{stats("one")}, prometheusText))
	seen := map[string]bool{}
	for i := range families {
		f := &families[i]
		require.False(t, seen[f.name], f.name)
		seen[f.name] = true
		require.Contains(t, all, "# TYPE "+f.name+" "+f.kind+"\n")
		require.Equal(t, f.kind == "counter", strings.HasSuffix(f.name, "_total"), f.name)
		require.NotRegexp(t, `\.$|\n`, f.help)
		f.each(stats("one"), func(_ any, labels ...string) { require.Len(t, labels, len(f.labels), f.name) })
	}
	require.NotContains(t, all, "NaN")
}

var update = flag.Bool("update", false, "write the table into docs/operations.md")

func TestTheGuideHasTheTable(t *testing.T) {
	const path, begin, end = "../../../docs/operations.md", "<!-- begin: made by go generate ./core/metrics/exporter -->\n", "<!-- end -->"
	guide, err := os.ReadFile(path)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(guide), begin)
	_, after, ended := strings.Cut(rest, end)
	require.True(t, ok && ended)
	table := "| name | kind | labels | what |\n|---|---|---|---|\n"
	for i := range families {
		f := &families[i]
		labels := ""
		if len(f.labels) > 0 {
			labels = "`" + strings.Join(f.labels, "`, `") + "`"
		}
		table += fmt.Sprintf("| `%s` | %s | %s | %s. |\n", f.name, f.kind, labels, f.help)
	}
	want := before + begin + table + end + after
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(want), 0o644))
		return
	}
	require.True(t, want == string(guide), "run go generate ./core/metrics/exporter")
	for _, r := range metrics.Reasons() {
		require.Contains(t, string(guide), "\n| `"+r.String()+"` | ", "the table of reasons")
	}
}

func TestPromtoolFindsNothingWrong(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is missing: it is in Debian's package prometheus")
	}
	check := exec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(string(text([]*metrics.Stats{stats("one"), stats("two")}, prometheusText)))
	out, err := check.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
}

func TestEnginesOfAProcessAreShownAtOnePlaceUntilTheyEnd(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	one := attachAt(t, address, func() *metrics.Stats { return stats("one") })
	two := attachAt(t, address, func() *metrics.Stats { return stats("two") })
	again := attachAt(t, address, func() *metrics.Stats { return stats("two") })
	c := client("tcp", address)

	code, kind, body := get(t, c, "/metrics")
	require.Equal(t, 200, code)
	require.Equal(t, "text/plain; version=0.0.4; charset=utf-8", kind)
	require.Contains(t, body, `kvferry_sessions{engine="one"} 1`)
	require.Contains(t, body, `kvferry_sessions{engine="two"} 1`)
	require.Contains(t, body, `kvferry_sessions{engine="two (id of two)"} 1`, "two values with the same labels are an error")

	_, kind, body = get(t, c, "/stats")
	require.Equal(t, "application/json", kind)
	var all []metrics.Stats
	require.NoError(t, json.Unmarshal([]byte(body), &all))
	require.Len(t, all, 3)
	require.Equal(t, *stats("one"), func() metrics.Stats { s := all[0]; s.Initiator[0].Peer = stats("one").Initiator[0].Peer; return s }())

	code, _, body = get(t, c, "/")
	require.Equal(t, 404, code)
	require.Contains(t, body, "/metrics")
	answer, err := c.Post("http://x/metrics", "text/plain", nil)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, 405, answer.StatusCode)

	one()
	one()
	again()
	_, _, body = get(t, c, "/metrics")
	require.NotContains(t, body, `engine="one"`)
	two()
	_, err = c.Get("http://x/metrics")
	require.Error(t, err)
	attachAt(t, address, func() *metrics.Stats { return stats("three") })()
}

func TestAnEngineIsNotAskedOnceItIsDetached(t *testing.T) {
	address := "unix:" + filepath.Join(shortFolder(t), "socket")
	attachAt(t, address, func() *metrics.Stats { return stats("other") })
	var ended, late atomic.Bool
	detach := attachAt(t, address, func() *metrics.Stats {
		late.Store(late.Load() || ended.Load())
		return stats("one")
	})
	c := client("unix", address[len("unix:"):])
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			get(t, c, "/metrics")
		}
	}()
	detach()
	ended.Store(true)
	<-done
	require.False(t, late.Load())
}

func TestAPortInUseIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, err = Attach(l.Addr().String(), nil, zap.NewNop())
	require.ErrorContains(t, err, "address already in use")
}

func TestOfARangeTheFirstFreePortIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	taken, err := listen(fmt.Sprintf("127.0.0.1:%d-%d", port, min(port+20, 65535)))
	require.NoError(t, err)
	defer taken.Close()
	require.Greater(t, taken.Addr().(*net.TCPAddr).Port, port)
}

func TestOnlyAnAddressIsAnAddress(t *testing.T) {
	for _, bad := range []string{"", "9400", "localhost", "localhost:", "localhost:http", "127.0.0.1:9400-", "127.0.0.1:9401-9400",
		"127.0.0.1:0-5", "127.0.0.1:65536", "unix:", "unix:/there/is/no/such/folder"} {
		_, err := Attach(bad, nil, zap.NewNop())
		require.Error(t, err, bad)
	}
}

func TestASocketThatWasLeftBehindIsReplacedAndALivingOneIsNot(t *testing.T) {
	folder := shortFolder(t)
	path := filepath.Join(folder, "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	_, err = Attach("unix:"+path, nil, zap.NewNop())
	require.ErrorContains(t, err, "address already in use")
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())

	detach := attachAt(t, "unix:"+path, func() *metrics.Stats { return stats("one") })
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "the socket is this user's alone")
	_, _, body := get(t, client("unix", path), "/metrics")
	require.Contains(t, body, "kvferry_sessions")
	detach()
	left, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Empty(t, left)

	file := filepath.Join(folder, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	_, err = Attach("unix:"+file, nil, zap.NewNop())
	require.ErrorContains(t, err, "address already in use")
	require.FileExists(t, file)
}

func TestAPathMayHaveTheNumberOfTheProcess(t *testing.T) {
	folder := shortFolder(t)
	attachAt(t, "unix:"+folder+"/%p.socket", func() *metrics.Stats { return stats("one") })
	require.FileExists(t, fmt.Sprintf("%s/%d.socket", folder, os.Getpid()))
}

func TestSilentConnectionsGiveWayToARequest(t *testing.T) {
	for network, address := range map[string]string{
		"unix": "unix:" + filepath.Join(shortFolder(t), "socket"),
		"tcp":  fmt.Sprintf("127.0.0.1:%d", freePort(t)),
	} {
		target := strings.TrimPrefix(address, "unix:")
		detach := attachAt(t, address, func() *metrics.Stats { return stats("one") })
		var silent []net.Conn
		for range 4 * maxConnections {
			conn, err := net.Dial(network, target)
			require.NoError(t, err)
			silent = append(silent, conn)
		}
		answer, err := client(network, target).Get("http://x/metrics")
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())

		_, err = silent[0].Read(make([]byte, 1))
		require.Error(t, err, "the oldest has given way")
		newest := silent[len(silent)-1]
		_, err = newest.Write([]byte("GET /metrics HTTP/1.0\r\n\r\n"))
		require.NoError(t, err)
		all, err := io.ReadAll(newest)
		require.NoError(t, err)
		require.Contains(t, string(all), "200 OK", "the newest has not, and has not waited until its time was over")
		detach() // with connections that are silent
		for _, conn := range silent {
			require.NoError(t, conn.Close())
		}
	}
}

func TestAPortBeyondThisHostIsWarnedOfOnce(t *testing.T) {
	observed, lines := observer.New(zap.InfoLevel)
	address := fmt.Sprintf("0.0.0.0:%d", freePort(t))
	for range 2 {
		detach, err := Attach(address, func() *metrics.Stats { return stats("one") }, zap.New(observed))
		require.NoError(t, err)
		defer detach()
	}
	require.Len(t, lines.All(), 1)
	require.Equal(t, zap.WarnLevel, lines.All()[0].Level)

	here, err := Attach("127.0.0.1:0", func() *metrics.Stats { return stats("one") }, zap.New(observed))
	require.NoError(t, err)
	here()
	require.Equal(t, zap.InfoLevel, lines.All()[1].Level)
}
