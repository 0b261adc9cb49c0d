package sockio

import (
	"os"
	"sync"
	"sync/atomic"

	"kvferry/core/metrics"

	"golang.org/x/sys/unix"
)

// flow is what Flow needs. The kernel answers between two calls of the socket, so Flow must not ask while a call is under way that
// may wait for a page. It tells announced calls that it asks, as a raw call would (memory.go).
type flow struct {
	mu     sync.Mutex // held by the goroutine that asks
	asking atomic.Bool
	last   metrics.Flow
}

// Flow is what the kernel knows of a TCP connection; zero for any other, and for one that was closed. While a call waits for a page
// of memory, Flow returns what it returned before.
func (s *Socket) Flow() metrics.Flow {
	if s == nil || s.IsLocal() {
		return metrics.Flow{}
	}
	s.flow.mu.Lock()
	defer s.flow.mu.Unlock()
	s.flow.asking.Store(true)
	defer s.flow.asking.Store(false)
	if s.out.inAnnounced.Load() || s.in.inAnnounced.Load() {
		return s.flow.last
	}
	var info *unix.TCPInfo
	err := s.Control(func(socket int) (err error) {
		info, err = unix.GetsockoptTCPInfo(socket, unix.IPPROTO_TCP, unix.TCP_INFO)
		return os.NewSyscallError("getsockopt", err)
	})
	if err != nil {
		return metrics.Flow{}
	}
	s.flow.last = flowOf(info)
	return s.flow.last
}

func flowOf(info *unix.TCPInfo) metrics.Flow {
	return metrics.Flow{
		Connections: 1, RoundTrip: seconds(info.Rtt), MinRoundTrip: seconds(info.Min_rtt),
		Window: uint64(info.Snd_cwnd) * uint64(info.Snd_mss), PeerWindow: uint64(info.Snd_wnd), Segment: uint64(info.Snd_mss), Delivery: info.Delivery_rate,
		Sent: info.Bytes_sent, Retransmitted: info.Bytes_retrans, Received: info.Bytes_received,
		Segments: uint64(info.Data_segs_in), OutOfOrder: uint64(info.Rcv_ooopack),
		Busy: float64(info.Busy_time) / 1e6, PeerLimited: float64(info.Rwnd_limited) / 1e6, BufferLimited: float64(info.Sndbuf_limited) / 1e6,
	}
}

// seconds are so many microseconds. The kernel has the largest number for a round trip that it has not measured.
func seconds(microseconds uint32) float64 {
	if microseconds == ^uint32(0) {
		return 0
	}
	return float64(microseconds) / 1e6
}
