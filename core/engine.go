// Package core is the engine: registered memory, opened segments, and batches of transfers that it hands to a
// Transport. It knows no wire format, no device library and no C.
package core

import (
	"cmp"
	"context"
	"errors"
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
	Waits    Waits

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

	notAllowed atomic.Uint64 // connections from networks that KVFERRY_ALLOW does not have
	version    string
	made       time.Duration // by clock.Now

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

// Waits are how long an engine waits for transfers that do not end. Fields that are 0 have defaults. Tests shorten them.
type Waits struct {
	Grace  time.Duration // how long Unregister waits before it ends the transfers that use the memory: 2 s
	Ending time.Duration // how long a transfer that was given up may take to end before it counts as stuck: EndingTime
}

// unregisterGrace and EndingTime are the defaults of Waits. A transfer that is given up may take a second to end: an answer to the
// peer, or from it, may be on its way.
const (
	unregisterGrace = 2 * time.Second
	EndingTime      = 5 * time.Second
)

// New makes an engine: it opens the metadata store, starts the handshake server, and publishes its descriptor. A
// transport is installed afterwards.
func New(o Options) (*Engine, error) {
	guardStandardStreams()
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
	settings := o.Config.Security
	settings.ShownPeers = o.Config.MetricsPeers
	s.policy, err = security.New(settings, s.identity, o.Log)
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
		local: newLocalTransport(ctx, memory, &counters.Own), stager: newStager(), devices: newDevices(o.Runtimes, name, memory, &o.Config, o.Log), sync: make(chan struct{}, 1), grace: cmp.Or(o.Waits.Grace, unregisterGrace), ending: cmp.Or(o.Waits.Ending, EndingTime),
		ctx: ctx, cancel: cancel,
	}
	e.transports.Store(&[]installedTransport{})
	if err := e.listen(name); err != nil {
		cancel()
		return nil, errors.Join(err, store.Close(), self.policy.Close())
	}
	e.trace = trace.Open(e.name, e.identity, trace.Options{
		File: o.Config.TraceFile, Batches: o.Config.TraceBatches, Slower: o.Config.TraceSlower, Log: o.Log,
		UnderWay: e.unrecorded,
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
