package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"kvferry/core/status"
)

// DefaultTimeout is how long etcd or Redis may take to be connected to, and a whole request, where no setting says
// otherwise.
const DefaultTimeout = 5 * time.Second

// PageKeys is how many keys a store asks its server for at once.
const PageKeys = 1000

var (
	ErrTooLong = fmt.Errorf("the value is longer than %d bytes", MaxValue)
	ErrClosed  = errors.New("the store is closed")
)

// HostPort completes "host", "host:port", "[v6]", "[v6]:port" and "v6:port" with a default port. The error carries
// status.InvalidArgument, and does not repeat text that may hold a password.
func HostPort(text, defaultPort string) (string, error) {
	if strings.Contains(text, "@") {
		return "", status.Errorf(status.InvalidArgument,
			"the metadata connection string may not hold a user or a password: these have variables of their own")
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = text, defaultPort
		if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
			host = text[1 : len(text)-1]
		} else if colon := strings.LastIndexByte(text, ':'); net.ParseIP(text) == nil && colon > 0 {
			host, port = text[:colon], text[colon+1:]
		}
	}
	if host == "" || port == "" || strings.ContainsAny(host+port, "/[]?#% \t") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return "", status.Errorf(status.InvalidArgument, "the metadata connection string holds %.300q, which is no host:port", text)
	}
	return net.JoinHostPort(host, port), nil
}

// Within is ctx for one request, which fails after a time.
func Within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
}

// Failed adds the store, the operation and the key to an error. Where ctx has ended, its cause replaces the error.
func Failed(ctx context.Context, store Store, what, key string, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return status.Errorf(status.Metadata, "metadata store %s: %s %.300s: %w", store.Name(), what, key, err)
}

// CheckCount is the error for more keys than a caller of Keys takes.
func CheckCount(keys []string, limit int) error {
	if len(keys) > limit {
		return fmt.Errorf("there are more than %d keys", limit)
	}
	return nil
}

// WithNewline is a value as Mooncake writes it to etcd: with one newline at its end.
func WithNewline(value []byte) string { return string(WithoutNewline(value)) + "\n" }

// WithoutNewline is a value as Get returns it: without the newline at its end, if it has one.
func WithoutNewline(value []byte) []byte { return bytes.TrimSuffix(value, []byte("\n")) }
