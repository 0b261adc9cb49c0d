package metadata

import (
	"context"
	"net/url"
	"strings"
)

// kv is a central store: a flat map of keys to values that all engines share. Every method may be called from any
// goroutine, and returns by the context's deadline or the store's own time-out. Errors carry status.Metadata, and name
// the store's address and the key. No value is longer than maxValue.
type kv interface {
	get(ctx context.Context, key string) (value []byte, found bool, err error)
	// put creates or replaces. A store may refuse to replace rpc_meta, as Mooncake's HTTP server does: it is removed first.
	put(ctx context.Context, key string, value []byte) error
	// remove removes a key as long as it holds that value. A missing key is no error.
	remove(ctx context.Context, key string, value []byte) error
	name() string // for errors: "http://10.0.0.1:8080/metadata"; never a password
	close() error
}

// maxValue is the longest value that is written to a central store or taken from one, in bytes: Mooncake's HTTP server
// takes no longer one.
const maxValue = 1 << 20

// redacted is a connection string as it may be shown: without user, password and query.
func redacted(connection string) string {
	if u, err := url.Parse(connection); err == nil {
		u.User, u.RawQuery, u.Fragment = nil, "", ""
		return u.String()
	}
	scheme, rest, _ := strings.Cut(connection, "://")
	rest = rest[strings.LastIndex(rest, "@")+1:]
	servers, _, _ := strings.Cut(rest, "?")
	return scheme + "://" + servers
}
