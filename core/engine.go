// Package core is the engine: registered memory, opened segments, and batches of transfers that it hands to a
// Transport. It knows no wire format, no device library and no C.
package core

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/address"
	"kvferry/core/clock"
	"kvferry/core/device"
	"kvferry/core/metadata"
	"kvferry/core/metadata/kv"
	"kvferry/core/metrics"
	"kvferry/core/security"
	"kvferry/core/status"
	"kvferry/core/trace"

	"go.uber.org/zap"
)

// Options are what an engine is made from.
type Options struct {
	Name     string // local server name: host, host:port, [v6]:port, host:port:npu_N
	Metadata string // connection string of the metadata store, or "P2PHANDSHAKE"
	Config   Config
	Log      *zap.Logger
	Runtimes []device.Runtime // of the devices whose memory may be registered

	// For the line that says at INFO that the engine has started.
	Version string   // of the library
	Changed []string // settings that differ from their defaults: ChangedSettings
}

// Engine owns registered memory, opened segments and batches, and hands transfers to its transport. Its methods may be
// called from any goroutine, and their errors carry a status.Code. After Close they fail with ErrClosed.
type Engine struct {
	config   Config
	log      *zap.Logger
	central  bool // the metadata store is one that engines share
	name     string
	identity string // see Identity
	site     site

	memory   *Registry
	segments *segments
	batches  sync.Map // id -> *Batch
	inbox    *inbox
	started  startInfo
	metrics  *metrics.Engine
	trace    *trace.Recorder // nil while tracing is off
	version  string
	made     time.Duration // by clock.Now

	policy *security.Policy
	store  metadata.Store
	client metadata.Client
	server *metadata.Server
	port   int // of the handshake server

	transports atomic.Pointer[[]installedTransport]
	installing sync.Mutex
	local      *localTransport
	stager     *stager
	devices    *devices
	ordered    ordered

	sync   chan struct{} // has an element when the segments are to be refreshed
	grace  time.Duration // how long Unregister waits before it ends the transfers that use the memory
	ending time.Duration // how long a transfer that was given up may take to end before it counts as stuck

	ctx      context.Context
	cancel   context.CancelFunc
	running  group      // goroutines of the engine, and calls that Close waits for
	starting sync.Mutex // keeps spawn and close apart
	closing  sync.Once
}

type installedTransport struct {
	name string
	Transport
}

// unregisterGrace and EndingTime are Engine.grace and Engine.ending, unless a test sets them. A transfer that is given up may take
// a second to end: an answer to the peer, or from it, may be on its way.
const (
	unregisterGrace = 2 * time.Second
	EndingTime      = 5 * time.Second
)

// New makes an engine: it opens the metadata store, starts the handshake server, and publishes its descriptor. A
// transport is installed afterwards.
func New(o Options) (*Engine, error) {
	name, err := address.Parse(o.Name, o.Config.HandshakePort)
	if err != nil {
		return nil, err
	}
	self, err := newSelf(o)
	if err != nil {
		return nil, err
	}
	store, err := metadata.Open(o.Metadata, self.storeOptions(o))
	if err != nil {
		return nil, errors.Join(err, self.policy.Close())
	}
	return start(o, name, self, store)
}

// storeOptions are the settings of the store of an engine.
func (s self) storeOptions(o Options) metadata.Options {
	return metadata.Options{
		Security:       s.policy,
		ConnectTimeout: o.Config.HandshakeConnectTimeout,
		MaxLength:      o.Config.HandshakeMaxLength,
		DefaultPort:    o.Config.HandshakePort,
		ClusterID:      o.Config.ClusterID,
		KeepInterval:   o.Config.MetadataKeepInterval,
		Central: kv.Options{
			Connection: o.Config.Metadata,
			HTTPToken:  string(o.Config.MetadataHTTPToken),
			Etcd: kv.EtcdOptions{
				Username: o.Config.EtcdUsername, Password: string(o.Config.EtcdPassword), TLS: o.Config.EtcdTLS, Lease: o.Config.EtcdLease,
			},
			Redis: kv.RedisOptions{
				Username: o.Config.RedisUsername, Password: string(o.Config.RedisPassword), DB: o.Config.RedisDB,
			},
			Log: o.Log,
		},
	}
}

// self is what an engine proves who it is by.
type self struct {
	identity string
	policy   *security.Policy
}

// newSelf reads the secret or the certificate of an engine.
func newSelf(o Options) (s self, err error) {
	s.identity = newIdentity()
	s.policy, err = security.New(o.Config.Security, s.identity, o.Log)
	return s, err
}

// start is New with an open store, which it closes when it fails.
func start(o Options, name address.Name, self self, store metadata.Store) (*Engine, error) {
	ctx, end := context.WithCancelCause(context.Background())
	cancel := func() { end(closedError()) }
	memory, counters := newRegistry(), metrics.NewEngine(o.Config.MetricsPeers)
	store = &measuredStore{Store: store, counters: counters}
	e := &Engine{
		metrics: counters, version: o.Version, made: clock.Now(),
		config: o.Config, log: o.Log, central: o.Metadata != metadata.P2P, name: o.Name, identity: self.identity, policy: self.policy,
		memory: memory, segments: newSegments(counters.Peers), inbox: newInbox(&o.Config, counters, o.Log),
		started: startInfo{version: o.Version, metadata: metadata.Shown(o.Metadata), changed: o.Changed},
		store:   store, client: metadata.Client{
			ConnectTimeout: o.Config.HandshakeConnectTimeout, MaxLength: o.Config.HandshakeMaxLength, Security: self.policy,
		},
		local: newLocalTransport(ctx, memory, &counters.Own), stager: newStager(), devices: newDevices(o.Runtimes, name, &o.Config, o.Log), sync: make(chan struct{}, 1), grace: unregisterGrace, ending: EndingTime,
		ctx: ctx, cancel: cancel,
	}
	e.transports.Store(&[]installedTransport{})
	if err := e.listen(name); err != nil {
		cancel()
		return nil, errors.Join(err, store.Close(), self.policy.Close())
	}
	e.trace = trace.Open(e.name, e.identity, trace.Options{
		File: o.Config.TraceFile, Batches: o.Config.TraceBatches, Slower: o.Config.TraceSlower, Log: o.Log,
	})
	e.running.Go(e.keepSynced)
	if o.Config.Metrics {
		e.running.Go(e.logThroughput)
	}
	if err := e.publish(); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// listen starts the handshake server. In P2P mode its port gives the engine its public name.
func (e *Engine) listen(name address.Name) (err error) {
	if e.site, err = siteOf(name, e.central, &e.config); err != nil {
		return err
	}
	listener, err := e.Listen(e.site.minPort, e.site.maxPort, e.config.HandshakeBacklog)
	if err != nil {
		return err
	}
	e.port = listener.Addr().(*net.TCPAddr).Port
	handlers := metadata.Handlers{Descriptor: e.Descriptor, Notify: e.inbox.receive}
	if e.central {
		handlers.Descriptor = func() *metadata.Descriptor { return nil }
	} else {
		e.name = e.Address()
	}
	handlers.Name, handlers.Names = e.name, e.site.further(e.port)
	e.site.warn(e.name, e.policy.Mode(), e.log)
	e.server = metadata.Serve(listener, handlers,
		metadata.HandshakeOptions{Security: e.policy, MaxLength: e.config.HandshakeMaxLength, MaxConnections: e.config.MaxHandshakes, MaxReceiving: int64(e.config.MaxNotifyBytes), Log: e.log})
	return nil
}

// spawn runs f in a goroutine that Close waits for, or reports false when the engine is closed.
func (e *Engine) spawn(f func()) bool {
	if !e.enter() {
		return false
	}
	go func() {
		defer e.running.Done()
		f()
	}()
	return true
}

// enter makes Close wait until the caller calls running.Done. It returns false when the engine is closed.
func (e *Engine) enter() bool {
	e.starting.Lock()
	defer e.starting.Unlock()
	if e.ctx.Err() != nil {
		return false
	}
	e.running.Add(1)
	return true
}

// Withdraw removes from the metadata store what peers find the engine by. Transfers go on.
func (e *Engine) Withdraw() error {
	const limit = 2 * time.Second // for a store that does not answer
	ctx, done := context.WithTimeout(context.Background(), limit)
	defer done()
	return e.store.Withdraw(ctx)
}

func closedError() error { return status.Errorf(status.Context, "%w", ErrClosed) }

// Config is the engine's configuration. It is never changed.
func (e *Engine) Config() *Config { return &e.config }

// Log is the engine's log.
func (e *Engine) Log() *zap.Logger { return e.log }

// Trace records what transports do; nil while tracing is off.
func (e *Engine) Trace() *trace.Recorder { return e.trace }

// Security says who the engine's peers are, and encrypts what passes between them. The engine closes it.
func (e *Engine) Security() *security.Policy { return e.policy }

// Memory is the index of registered memory, from which transports pin what peers ask for.
func (e *Engine) Memory() *Registry { return e.memory }

// Context ends when the engine is closed.
func (e *Engine) Context() context.Context { return e.ctx }

// Name is what peers open: in P2P mode Address, with central metadata the local name as it was given.
func (e *Engine) Name() string { return e.name }

// Address is where peers reach the handshake server: host:port, IPv6 hosts in brackets.
func (e *Engine) Address() string { return net.JoinHostPort(e.site.host, strconv.Itoa(e.port)) }

// Identity distinguishes this incarnation of the engine from every other: 16 random bytes in hexadecimal digits. The engine's
// descriptor has it.
func (e *Engine) Identity() string { return e.identity }

func newIdentity() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails: see crypto/rand
	return hex.EncodeToString(random[:])
}

// ListenHost is the addresses that both ports listen on, joined by commas: those of KVFERRY_LISTEN, or the one that peers connect
// to if it belongs to this machine. "" is all addresses.
func (e *Engine) ListenHost() string { return strings.Join(e.site.listen, ",") }

// HandshakePort is the port of the handshake server.
func (e *Engine) HandshakePort() int { return e.port }

// Descriptor describes the engine's own segment as it is now.
func (e *Engine) Descriptor() *metadata.Descriptor {
	d := &metadata.Descriptor{Name: e.name, Protocol: "tcp", DataHost: e.site.host, IsKvferry: true}
	for _, t := range e.installed() {
		endpoint := t.Endpoint()
		d.DataPort, d.ProtoVersion, d.SameHostSocket = endpoint.Port, endpoint.ProtoVersion, endpoint.SameHostSocket
		if endpoint.Hello > 0 {
			d.Identity, d.Hello = e.identity, endpoint.Hello
			if e.policy.Mode() != security.Off {
				d.TLS = security.Version
			}
		}
	}
	e.memory.Each(func(r *Region) bool {
		if r.Access != NoAccess {
			d.Buffers = append(d.Buffers, metadata.Buffer{
				Name: r.Location, Addr: uint64(r.Addr), Length: r.Length, Access: r.Access.published(),
			})
		}
		return true
	})
	return d
}

// Install makes a transport and returns it, or returns the one that is installed under that name.
func (e *Engine) Install(name string, open func(*Engine) (Transport, error)) (Transport, error) {
	e.installing.Lock()
	defer e.installing.Unlock()
	if e.ctx.Err() != nil {
		return nil, closedError()
	}
	for _, t := range e.installed() {
		if t.name == name {
			return t.Transport, nil
		}
	}
	t, err := open(e)
	if err != nil {
		return nil, err
	}
	before := e.installed()
	all := append(slices.Clone(before), installedTransport{name, t})
	e.transports.Store(&all)
	if err := e.publish(); err != nil {
		e.transports.Store(&before)
		return nil, errors.Join(err, t.Close())
	}
	if len(before) == 0 {
		e.logStart()
	}
	return t, nil
}

// RequireRuntime opens the library of one kind of device, "npu", or says why that is not possible. Registering memory does this,
// too, where it is needed.
func (e *Engine) RequireRuntime(name string) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	return e.devices.require(name)
}

// installed are the transports. The last one is used.
func (e *Engine) installed() []installedTransport { return *e.transports.Load() }

// publish writes the engine's current descriptor to the metadata store.
func (e *Engine) publish() error {
	if err := e.store.Publish(e.ctx, e.Address(), e.Descriptor); err != nil {
		return status.Errorf(status.Metadata, "publishing the descriptor of %s: %w", e.name, err)
	}
	return nil
}

// Stats describes the engine now.
func (e *Engine) Stats() *metrics.Stats {
	s := &metrics.Stats{
		Version: e.version, Engine: e.name, Identity: e.identity, Uptime: (clock.Now() - e.made).Seconds(), Target: []metrics.TargetPeer{},
	}
	e.metrics.Describe(s)
	e.describeBatches(s)
	states := map[*metrics.Peer]metrics.PeerState{}
	for _, t := range e.installed() {
		all := t.Stats()
		maps.Copy(states, all.Initiator)
		s.Target = append(s.Target, all.Target...)
		s.Sessions.Plus(&all.Sessions)
	}
	s.Initiator = e.metrics.DescribePeers(states)
	s.Handshakes = e.server.Stats()
	messages, bytes := e.inbox.waiting()
	s.Notifications.Waiting, s.Notifications.WaitingBytes = uint64(messages), uint64(bytes)
	c := e.policy.Counters()
	s.Security = metrics.Security{
		Mode: e.policy.Mode().String(), Refused: c.Refused, Older: c.Older, Reloads: c.Reloads, FailedReloads: c.FailedReloads,
	}
	s.Staging = e.devices.describe()
	s.Process = metrics.ReadProcess()
	s.Process.DroppedLogLines = droppedLogLines.Load()
	return s
}

// describeBatches counts what has not ended.
func (e *Engine) describeBatches(s *metrics.Stats) {
	e.batches.Range(func(_, value any) bool {
		b := value.(*Batch)
		if requests := b.ending.Load(); requests > 0 {
			s.Unfinished.Batches++
			s.Unfinished.Requests += uint64(requests)
			s.Unfinished.Bytes += b.bytesOutstanding()
		}
		return true
	})
}

// Links describes the peers.
func (e *Engine) Links() []Link {
	var links []Link
	for _, t := range e.installed() {
		links = append(links, t.Links()...)
	}
	return links
}
