package metadata

import (
	"strings"
	"time"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// P2P is the connection string of the mode without a central store: a segment's name is its owner's address.
const P2P = "P2PHANDSHAKE"

// Options are the settings of a store.
type Options struct {
	ConnectTimeout time.Duration // see Client
	MaxLength      int           // see Client, bytes
	DefaultPort    int           // in P2P mode: handshake port of segment names that give none

	// What follows is for central stores.
	ClusterID    string        // prefix of the keys; "" for none
	KeepInterval time.Duration // how often the own entries are looked after; 0: never
	HTTPToken    string        // bearer token for an HTTP store; "" for none
	Store        StoreOptions
	Etcd         EtcdOptions
	Redis        RedisOptions
	Log          *zap.Logger // nil: none
}

// Open makes the store that a connection string names. An error carries status.InvalidArgument when the string is
// none. Nothing is connected yet.
func Open(connection string, o Options) (Store, error) {
	if connection == P2P {
		return newP2PStore(o), nil
	}
	store, err := openKV(connection, o)
	if err != nil {
		return nil, err
	}
	return newCentral(store, o), nil
}

// Shown is a connection string as a log may show it: with its scheme, and without user, password and query.
func Shown(connection string) string {
	if connection != P2P && !strings.Contains(connection, "://") {
		connection = "etcd://" + connection // as openKV takes it
	}
	return redacted(connection)
}

// openKV makes the central store that a connection string names.
func openKV(connection string, o Options) (kv, error) {
	if connection == "" {
		return nil, status.Errorf(status.InvalidArgument, "the metadata connection string is empty; %s needs no server", P2P)
	}
	scheme, server, explicit := strings.Cut(connection, "://")
	if !explicit {
		scheme, server = "etcd", connection // what Mooncake takes a bare host:port for
	}
	switch scheme {
	case "http", "https":
		return newHTTP(connection, o)
	case "redis", "rediss":
		return newRedis(server, scheme == "rediss", o.Store, o.Redis)
	case "etcd":
		return newEtcd(server, o.Store, o.Etcd, o.Log)
	}
	return nil, status.Errorf(status.InvalidArgument, "the metadata connection string has the unknown scheme %.40q", scheme)
}
