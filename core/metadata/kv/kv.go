// Package kv is what the kinds of central metadata store have in common: a map of keys to values that all engines share.
//
// A kind is a package that registers itself for the schemes of its connection strings, as drivers of database/sql do. A
// program imports the kinds that it offers for that side effect.
package kv

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"kvferry/core/status"
)

// Store is a central store: a flat map of keys to values. Every method may be called from any goroutine, and returns by
// the context's deadline or the store's own time-out. Errors carry status.Metadata, and name the store's address and the
// key. No value is longer than MaxValue.
type Store interface {
	Get(ctx context.Context, key string) (value []byte, found bool, err error)
	// Put creates or replaces a key. A store may refuse to replace rpc_meta, as Mooncake's HTTP server does: the caller removes
	// it first.
	Put(ctx context.Context, key string, value []byte) error
	// Remove removes a key as long as it holds that value. A missing key is no error.
	Remove(ctx context.Context, key string, value []byte) error
	// Keys are those that begin with a prefix, in no order. It fails where there are more than limit.
	Keys(ctx context.Context, prefix string, limit int) ([]string, error)
	Name() string // for errors: "http://10.0.0.1:8080/metadata"; never a password
	Close() error
}

// MaxValue is the length of the longest value that is put or got, in bytes. Mooncake's HTTP server takes no longer one.
const MaxValue = 1 << 20

// maxConnection is the length of the longest connection string, in bytes.
const maxConnection = 4096

// Opener makes a store. The connection string has its scheme. Nothing is connected yet. An error carries
// status.InvalidArgument.
type Opener func(connection string, o Options) (Store, error)

var (
	registering sync.RWMutex
	openers     = map[string]Opener{} // by scheme
)

// Register makes a kind of store available under a scheme. It panics where the scheme has a kind already.
func Register(scheme string, open Opener) {
	registering.Lock()
	defer registering.Unlock()
	if _, twice := openers[scheme]; twice {
		panic("two kinds of metadata store are registered for the scheme " + scheme)
	}
	openers[scheme] = open
}

// Open makes the store that a connection string names. An error carries status.InvalidArgument when the string is none,
// or its scheme is that of no registered kind. Nothing is connected yet.
func Open(connection string, o Options) (Store, error) {
	if reason := unfit(connection); reason != "" {
		return nil, status.Errorf(status.InvalidArgument, "the metadata connection string %s", reason)
	}
	connection = withScheme(connection)
	scheme, _, _ := strings.Cut(connection, "://")
	registering.RLock()
	open := openers[scheme]
	registering.RUnlock()
	if open == nil {
		return nil, status.Errorf(status.InvalidArgument, "the metadata connection string has the unknown scheme %.40q; known are %s",
			scheme, strings.Join(schemes(), ", "))
	}
	return open(connection, o)
}

// schemes are those that stores are registered for, in their order.
func schemes() []string {
	registering.RLock()
	defer registering.RUnlock()
	return slices.Sorted(maps.Keys(openers))
}

// unfit says why a text can be no connection string of any kind, without repeating it: it may have a password in it.
func unfit(connection string) string {
	switch {
	case len(connection) > maxConnection:
		return fmt.Sprintf("has %d bytes, more than %d", len(connection), maxConnection)
	case !utf8.ValidString(connection):
		return "is not valid UTF-8"
	case strings.ContainsFunc(connection, unicode.IsControl):
		return "has control characters in it"
	}
	return ""
}

// withScheme completes a bare host:port, which Mooncake takes for etcd's.
func withScheme(connection string) string {
	if strings.Contains(connection, "://") {
		return connection
	}
	return "etcd://" + connection
}

// Redacted is a connection string as a log or an error may show it: with its scheme, and without user, password and query.
func Redacted(connection string) string {
	connection = withScheme(connection)
	if u, err := url.Parse(connection); err == nil {
		u.User, u.RawQuery, u.Fragment = nil, "", ""
		return u.String()
	}
	scheme, rest, _ := strings.Cut(connection, "://")
	rest = rest[strings.LastIndex(rest, "@")+1:]
	servers, _, _ := strings.Cut(rest, "?")
	return scheme + "://" + servers
}
