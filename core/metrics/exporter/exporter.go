// Package exporter shows the metrics of the engines of a process: as text for Prometheus, and as JSON.
//
//  1. Attach adds an engine to the server of an address. The first engine with that address starts the server, and the last one
//     that is detached ends it: all engines of a process are shown at one place. AttachPrivately does the same with a socket for
//     the command `kvferry top`.
//  2. The server asks each engine when it is asked. families.go is the table of what is shown, text.go writes it.
//
// Prometheus' own library would take some 2 MB of the shared library and 5 MB of each process. In its place would go text.go: two
// formats that do not change any more. A real Prometheus and promtool read them in the tests.
package exporter

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"kvferry/core/metrics"
	"kvferry/core/shut"

	"go.uber.org/zap"
)

//go:generate go test -run ^TestTheGuideHasTheTable$ . -update

// The paths of a server.
const (
	metricsPath = "/metrics" // for Prometheus
	statsPath   = "/stats"   // a JSON array of metrics.Stats
)

const (
	// requestTimeout is how long a request and its answer may take each, and how long a connection is kept between two.
	requestTimeout = 5 * time.Second
	// closeTimeout is how long the end of a server waits for answers that are being sent.
	closeTimeout = time.Second
	maxHeader    = 16 << 10 // bytes
)

// Source describes an engine. It is called for each request, from any goroutine.
type Source func() *metrics.Stats

// servers are those of the process, by what attach was given.
var servers = struct {
	sync.Mutex
	open map[string]*server
}{open: map[string]*server{}}

// server shows some engines.
type server struct {
	http     *http.Server
	listener listener
	serving  sync.WaitGroup

	mu      sync.Mutex
	sources []*Source
}

// listener is a *net.TCPListener or a *unixListener.
type listener interface {
	net.Listener
	shut.Conn
}

// Attach shows an engine at an address: HOST:PORT, HOST:FIRST-LAST for the first free port of a range, or unix:PATH. A %p in
// either is the process's number. log is the engine's: it says where the metrics are, and warns if other machines can read them.
// The caller calls detach before the engine ends; it returns soon, and the engine is not asked any more.
func Attach(address string, source Source, log *zap.Logger) (detach func(), err error) {
	return attach("at "+address, source, func() (*server, error) {
		l, err := listen(address)
		if err != nil {
			return nil, err
		}
		tell(l.Addr(), log)
		return serve(l), nil
	})
}

// attach adds an engine to the server with a key. start makes that server.
func attach(key string, source Source, start func() (*server, error)) (detach func(), err error) {
	servers.Lock()
	defer servers.Unlock()
	s := servers.open[key]
	if s == nil {
		if s, err = start(); err != nil {
			return nil, err
		}
		servers.open[key] = s
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sources = append(s.sources, &source)
	return sync.OnceFunc(func() { detachFrom(key, s, &source) }), nil
}

// detachFrom undoes attach. It waits for a request that asks the engine.
func detachFrom(key string, s *server, source *Source) {
	servers.Lock()
	defer servers.Unlock()
	s.mu.Lock()
	s.sources = slices.DeleteFunc(s.sources, func(other *Source) bool { return other == source })
	last := len(s.sources) == 0
	s.mu.Unlock()
	if last {
		delete(servers.open, key)
		s.close()
	}
}

// serve starts a server.
func serve(l listener) *server {
	s := &server{listener: l}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	s.http = &http.Server{
		Handler: s, Protocols: &protocols, MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0),
		ReadHeaderTimeout: requestTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout, IdleTimeout: requestTimeout,
		ConnState: noteState,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
	}
	s.serving.Go(func() { _ = s.http.Serve(bounded(l)) })
	return s
}

// tell says where the metrics are.
func tell(at net.Addr, out *zap.Logger) {
	if tcp, ok := at.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		out.Warn("every machine that reaches this port can read the metrics, with the names of peers: KVFERRY_METRICS_LISTEN is beyond this host",
			zap.Stringer("listens at", at))
		return
	}
	out.Info("metrics are served", zap.Stringer("listens at", at), zap.String("path", metricsPath))
}

// close ends the server. Its goroutines have ended, but those of connections that it cut off, which end at once.
func (s *server) close() {
	_ = shut.Listener(s.listener) // also for forked children
	ctx, done := context.WithTimeout(context.Background(), closeTimeout)
	defer done()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	s.serving.Wait()
}

// ServeHTTP answers a request.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	noteRequest(r)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "the metrics can be read only", http.StatusMethodNotAllowed)
		return
	}
	switch r.URL.Path {
	case metricsPath:
		format := formatFor(r.Header.Values("Accept"))
		w.Header().Set("Content-Type", format.contentType)
		_, _ = w.Write(text(s.stats(), format))
	case statsPath:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.stats())
	default:
		http.Error(w, "there is "+metricsPath+" for Prometheus, and "+statsPath+" as JSON", http.StatusNotFound)
	}
}

// stats describes the engines, by name. Of two engines with one name, as in different clusters, the later one has its identity in
// its name.
func (s *server) stats() []*metrics.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*metrics.Stats, 0, len(s.sources))
	for _, source := range s.sources {
		next := (*source)()
		if slices.ContainsFunc(all, func(other *metrics.Stats) bool { return other.Engine == next.Engine }) {
			next.Engine += " (" + next.Identity + ")"
		}
		all = append(all, next)
	}
	slices.SortFunc(all, func(a, b *metrics.Stats) int { return strings.Compare(a.Engine, b.Engine) })
	return all
}
