// Package tcp moves bytes between engines over TCP: it speaks Mooncake's data port, versions 1 and 2, on both sides.
//
// Transport joins the two sides: tcp/client starts transfers, tcp/server serves those of peers.
package tcp

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"kvferry/core"
	"kvferry/core/address"
	"kvferry/core/fair"
	"kvferry/core/metrics"
	"kvferry/core/status"
	"kvferry/tcp/client"
	"kvferry/tcp/samehost"
	"kvferry/tcp/server"
	"kvferry/tcp/sockio"
	"kvferry/tcp/wire"

	"go.uber.org/zap"
)

// protoVersion is what the data port speaks.
const protoVersion = 2

// What counts the machine's processors is one for all engines of the process: how many threads poll, whether other programs want
// the processors, and how many long copies may run beside short transfers.
var (
	processors = sockio.NewProcessors(runtime.GOMAXPROCS(0))
	limiter    = samehost.NewCopyLimiter(runtime.GOMAXPROCS(0)/2, processors.Contention)
)

// The sessions of all engines of the process take a quarter of its descriptors at most, and so do their connections to peers.
// The rest is the application's.
var (
	sessionDescriptors = sync.OnceValue(quarterOfDescriptors)
	laneDescriptors    = sync.OnceValue(quarterOfDescriptors)
)

func quarterOfDescriptors() *sockio.Descriptors {
	return sockio.NewDescriptors(fair.ShareOfDescriptors(4))
}

// idleTime is how long a session is idle before it gives way to a newcomer. A peer that makes one request after the other mostly
// takes less for a pause.
const idleTime = 100 * time.Millisecond

// Transport is the core.Transport over TCP.
type Transport struct {
	client   *client.Client
	server   *server.Server
	endpoint core.Endpoint

	closing sync.Once
	ending  time.Duration // how long Close waits
	ended   chan struct{} // closed when no goroutine is left
}

// Open starts the data port of an engine, and returns the transport. It is a factory for core.Engine.Install.
func Open(e *core.Engine) (core.Transport, error) {
	config, log, self := e.Config(), e.Log(), wire.ParseIdentity(e.Identity())
	host, _, _ := net.SplitHostPort(e.Address())
	allow, err := address.ParseNetworks(config.Allow)
	if err != nil {
		return nil, err
	}
	listener, err := e.Listen(config.MinPort, config.MaxPort, 0)
	if err != nil {
		return nil, err
	}
	t := &Transport{ending: core.EndingTime, ended: make(chan struct{})}
	t.endpoint = core.Endpoint{Port: listener.Addr().(*net.TCPAddr).Port, ProtoVersion: protoVersion, Hello: wire.HelloVersion}
	sameHost := config.SameHost && !config.ForceTCP
	var local *net.UnixListener
	if sameHost {
		if local, t.endpoint.SameHostSocket, err = samehost.Listen(); err != nil {
			log.Warn("peers on this host use TCP", zap.Error(err))
		}
	}
	t.client = client.New(client.Options{
		Config: config, Log: log, Memory: e.Memory(), Identity: self, Host: host, Allow: allow, Port: t.endpoint.Port, SameHost: sameHost,
		Security: e.Security(), Congestion: congestionOf(config, listener, log), Processors: processors, Limiter: limiter,
		Descriptors: laneDescriptors(), Trace: e.Trace(),
	})
	t.server = server.New(log, e.Memory(), listener, local, server.Options{
		Identity: self, MaxSessions: config.MaxSessions, FirstRequest: config.FirstRequestTimeout, Idle: idleTime, ProgressTimeout: config.ProgressTimeout,
		StagingRate: config.StagingMinRate, Polling: config.Polling, MetricsPeers: config.MetricsPeers,
		Security: e.Security(), Processors: processors, Limiter: limiter, Descriptors: sessionDescriptors(), Trace: e.Trace(),
	})
	return t, nil
}

// congestionOf is the congestion control that the configuration asks for, if the system has it. The kernel takes it from the
// listening socket for the connections that are accepted.
func congestionOf(config *core.Config, listener syscall.Conn, log *zap.Logger) sockio.Congestion {
	wanted := sockio.Congestion(config.Congestion)
	if err := wanted.Set(listener); err != nil {
		log.Warn("KVFERRY_TCP_CONGESTION has no effect: data connections use the system's congestion control", zap.Error(err))
		return ""
	}
	return wanted
}

// Endpoint is the data port's.
func (t *Transport) Endpoint() core.Endpoint { return t.endpoint }

// Submit queues the work at its peer.
func (t *Transport) Submit(works ...*core.Work) { t.client.Submit(works...) }

// TakesTransfers says that works may be transfers of plans.
func (t *Transport) TakesTransfers() bool { return t.client.TakesTransfers() }

// Expect says that the calling goroutine is about to submit a request to the segment's peer, and to call Assist for it.
func (t *Transport) Expect(s *core.Segment) (end func()) { return t.client.Expect(s) }

// Assist receives answers of the segment's peer on the calling goroutine until done reports true, or for a moment.
func (t *Transport) Assist(s *core.Segment, done func() bool) { t.client.Assist(s, done) }

// Abort settles what is held of aborted works.
func (t *Transport) Abort() { t.client.Abort() }

// Moved is how many bytes have gone over the connections to a segment's owner that are up, in both directions.
func (t *Transport) Moved(s *core.Segment) uint64 { return t.client.Moved(s) }

// Forget drops the connections to a segment's owner.
func (t *Transport) Forget(s *core.Segment) { t.client.Forget(s) }

// Evict ends the sessions that move bytes of a region.
func (t *Transport) Evict(r *core.Region) { t.server.Evict(r) }

// EvictOffer ends the sessions that use an offer.
func (t *Transport) EvictOffer(o *core.Offer) { t.server.EvictOffer(o) }

// Holders names the peers whose sessions may be moving bytes of a region.
func (t *Transport) Holders(r *core.Region) []string { return t.server.Holders(r) }

// Links describes the peers on either side.
func (t *Transport) Links() []core.Link { return append(t.client.Links(), t.server.Links()...) }

// Stats describes both sides.
func (t *Transport) Stats() metrics.Transport {
	s := metrics.Transport{Initiator: t.client.States()}
	s.Target, s.Sessions = t.server.Stats()
	return s
}

// Close ends every connection, settles what is held, and waits for the goroutines. The error names those that are stuck in
// a system call or with a device.
func (t *Transport) Close() error {
	t.closing.Do(func() {
		t.client.Refuse()
		go t.end()
	})
	timer := time.NewTimer(t.ending)
	defer timer.Stop()
	select {
	case <-t.ended:
		return nil
	case <-timer.C:
		return status.Errorf(status.BatchBusy, "connections were closed, but are %w: %s", core.ErrInUse, t.stuck())
	}
}

// end returns when no goroutine is left.
func (t *Transport) end() {
	defer close(t.ended)
	t.client.End()
	t.server.Close()
	t.client.Wait()
}

// stuck names the connections that have not ended.
func (t *Transport) stuck() string {
	names := append(t.server.Stuck(), t.client.Stuck()...)
	const most = 8
	switch more := len(names) - most; {
	case len(names) == 0:
		return "some connections to segments that were removed"
	case more > 0:
		names = append(names[:most], fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, "; ")
}
