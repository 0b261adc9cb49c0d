package metadata

import (
	"strings"
	"time"

	"kvferry/core/status"
)

// P2P is the connection string of the mode without a central store: a segment's name is its owner's address.
const P2P = "P2PHANDSHAKE"

// Options are the settings of a store.
type Options struct {
	ConnectTimeout time.Duration // see Client
	MaxLength      int           // see Client, bytes
	DefaultPort    int           // handshake port of segment names that give none
}

// Open makes the store that a connection string names. An error carries status.InvalidArgument when the string is
// none, and status.Metadata when it names a kind of store that this version does not have. Nothing is connected yet.
func Open(connection string, o Options) (Store, error) {
	if connection == P2P {
		return newP2PStore(o), nil
	}
	if connection == "" {
		return nil, status.Errorf(status.InvalidArgument, "the metadata connection string is empty; %s needs no server", P2P)
	}
	scheme, _, explicit := strings.Cut(connection, "://")
	if !explicit {
		scheme = "etcd" // what Mooncake takes a bare host:port for
	}
	switch scheme {
	case "etcd", "redis", "http", "https":
		return nil, status.Errorf(status.Metadata, "the metadata connection string asks for a store of kind %s: this version knows %s only",
			scheme, P2P)
	}
	return nil, status.Errorf(status.InvalidArgument, "the metadata connection string has the unknown scheme %.40q", scheme)
}
