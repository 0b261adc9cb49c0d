package metaserver

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
)

// metricsKind is the Content-Type of Prometheus' text format.
const metricsKind = "text/plain; version=0.0.4; charset=utf-8"

// counters count the requests that were answered. Their number is bounded, whatever methods clients invent.
type counters struct {
	mu     sync.Mutex
	counts map[counter]uint64
}

type counter struct {
	method string
	status int
}

func (c *counters) count(method string, status int) {
	switch method {
	case http.MethodGet, http.MethodPut, http.MethodDelete:
	default:
		method = "other"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[counter]uint64{}
	}
	c.counts[counter{method, status}]++
}

// write adds a line for each counter, in order.
func (c *counters) write(out *bytes.Buffer, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := make([]string, 0, len(c.counts))
	for of := range maps.Keys(c.counts) {
		lines = append(lines, fmt.Sprintf("%s{method=%q,status=\"%d\"} %d\n", name, of.method, of.status, c.counts[of]))
	}
	slices.Sort(lines)
	for _, line := range lines {
		out.WriteString(line)
	}
}

// metrics is the state of the server in Prometheus' text format.
func (s *Server) metrics() []byte {
	var out bytes.Buffer
	introduce := func(name, kind, help string) {
		fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	single := func(name, kind, help string, value any) {
		introduce(name, kind, help)
		fmt.Fprintf(&out, "%s %d\n", name, value)
	}
	keys, size := s.store.usage()
	single("kvferry_metadata_keys", "gauge", "Entries that are stored.", keys)
	single("kvferry_metadata_bytes", "gauge", "Bytes of their keys and values.", size)
	single("kvferry_metadata_connections", "gauge", "Connections that are open.", s.slots.open())
	if s.snapshot != nil {
		single("kvferry_metadata_snapshot_failures_total", "counter", "Times that the snapshot could not be written.",
			s.snapshot.failures.Load())
	}
	introduce("kvferry_metadata_requests_total", "counter", "Requests that were answered.")
	s.requests.write(&out, "kvferry_metadata_requests_total")
	return out.Bytes()
}
