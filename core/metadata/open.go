package metadata

import (
	"strings"
	"time"

	"kvferry/core/metadata/kv"
	"kvferry/core/security"
	"kvferry/core/status"
)

// P2P is the connection string of the mode without a central store: a segment's name is its owner's address.
const P2P = "P2PHANDSHAKE"

// Options are the settings of a store.
type Options struct {
	ConnectTimeout time.Duration // see Client
	MaxLength      int           // see Client, bytes
	DefaultPort    int           // in P2P mode: handshake port of segment names that give none

	Security *security.Policy // see Client

	// What follows is for central stores.
	ClusterID    string        // prefix of the keys; "" for none
	KeepInterval time.Duration // how often the own entries are looked after; 0: never
	Central      kv.Options
}

// Open makes the store that a connection string names. An error carries status.InvalidArgument when the string is
// none. Nothing is connected yet.
func Open(connection string, o Options) (Store, error) {
	if connection == P2P {
		return newP2PStore(o), nil
	}
	switch server := strings.TrimPrefix(connection, "etcd://"); { // as the Python package completes a string without a scheme
	case server == "":
		return nil, status.Errorf(status.InvalidArgument, "the metadata connection string names no server; %s needs none", P2P)
	case strings.EqualFold(server, P2P):
		return nil, status.Errorf(status.InvalidArgument, "the metadata connection string is %q, and has to be %s without a server", server, P2P)
	}
	store, err := kv.Open(connection, o.Central)
	if err != nil {
		return nil, err
	}
	return newCentral(store, o), nil
}

// Shown is a connection string as a log may show it: with its scheme, and without user, password and query.
func Shown(connection string) string {
	if connection == P2P {
		return P2P
	}
	return kv.Redacted(connection)
}
