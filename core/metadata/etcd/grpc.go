package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"kvferry/core/metadata/kv"
)

// A call of gRPC is a POST over HTTP/2. Its body is the request, after a byte that says that it is not compressed and four
// of its length; that of the answer is alike. The trailer of the answer says whether the call succeeded.
// github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md has the whole of it.

const (
	prefixLength      = 5               // bytes before a message
	maxReply          = 2 * kv.MaxValue // bytes of a message
	maxResponseHeader = 64 << 10        // bytes
	maxQuoted         = 300             // bytes of what a server says of an error
	idleTimeout       = 30 * time.Second
)

// code is what a call came to.
type code int

// The codes of gRPC that matter here.
const (
	codeOK                 code = 0
	codeFailedPrecondition code = 9
	codeUnavailable        code = 14
)

// callError is a call that a server has refused, or has failed at.
type callError struct {
	code    code
	message string
}

func (e *callError) Error() string {
	if strings.HasPrefix(e.message, "etcdserver: ") {
		return e.message
	}
	return fmt.Sprintf("the server answers gRPC status %d, %.*q", e.code, maxQuoted, e.message)
}

// dialError is a connection that could not be made. The request was not sent.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

// dialer makes the connections to all end points of a cluster.
type dialer struct {
	timeout time.Duration
	tls     *tls.Config     // nil: without TLS
	ctx     context.Context // its end closes all connections
}

// ownedConn is a connection that ends with a context.
type ownedConn struct {
	net.Conn
	disown func() bool
}

func (c ownedConn) Close() error {
	c.disown()
	return c.Conn.Close()
}

// dial connects without TLS.
func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, done := context.WithTimeout(ctx, d.timeout)
	defer done()
	defer context.AfterFunc(d.ctx, done)()
	var plain net.Dialer
	conn, err := plain.DialContext(ctx, network, address)
	if err != nil {
		return nil, dialError{err}
	}
	return ownedConn{conn, context.AfterFunc(d.ctx, func() { conn.Close() })}, nil
}

// dialTLS connects over TLS.
func (d *dialer) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := d.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	config := d.tls.Clone()
	config.NextProtos = []string{"h2"}
	if config.ServerName, _, err = net.SplitHostPort(address); err != nil {
		return nil, dialError{errors.Join(err, conn.Close())}
	}
	ctx, done := context.WithTimeout(ctx, d.timeout)
	defer done()
	secure := tls.Client(conn, config)
	err = secure.HandshakeContext(ctx)
	if err == nil && secure.ConnectionState().NegotiatedProtocol != "h2" {
		err = errors.New("the server does not offer HTTP/2")
	}
	if err != nil {
		conn.Close()
		return nil, dialError{fmt.Errorf("TLS handshake: %w", err)}
	}
	return secure, nil
}

// endpoint is one server of a cluster.
type endpoint struct {
	address string // host:port
	dialer  *dialer

	mu        sync.Mutex
	transport *http.Transport // has the connection; a new one after renew
}

func newEndpoint(address string, d *dialer) *endpoint {
	e := &endpoint{address: address, dialer: d}
	e.renew()
	return e
}

// renew has the next call make a new connection. Calls that are under way keep theirs.
func (e *endpoint) renew() {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	fresh := &http.Transport{
		DialContext: e.dialer.dial, DialTLSContext: e.dialer.dialTLS, Protocols: &protocols,
		DisableCompression: true, MaxResponseHeaderBytes: maxResponseHeader, IdleConnTimeout: idleTimeout,
	}
	e.mu.Lock()
	old := e.transport
	e.transport = fresh
	e.mu.Unlock()
	if old != nil {
		old.CloseIdleConnections()
	}
}

// call sends a request to a method, "KV/Range", and returns the reply. token is "" without a login. The error is a
// *callError when the server has answered one, and a dialError when the request was not sent.
func (e *endpoint) call(ctx context.Context, method, token string, message []byte) ([]byte, error) {
	request, err := e.request(ctx, method, token, message)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	transport := e.transport
	e.mu.Unlock()
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if kind := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "application/grpc") {
		return nil, fmt.Errorf("the server answers HTTP %d %.40q instead of gRPC: is it the client port of etcd?", response.StatusCode, kind)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, prefixLength+maxReply+1))
	if err != nil {
		return nil, err
	}
	if len(body) > prefixLength+maxReply {
		return nil, kv.ErrTooLong
	}
	if err := outcome(response); err != nil {
		return nil, err
	}
	return unframed(body)
}

func (e *endpoint) request(ctx context.Context, method, token string, message []byte) (*http.Request, error) {
	body := make([]byte, prefixLength, prefixLength+len(message))
	binary.BigEndian.PutUint32(body[1:], uint32(len(message)))
	scheme := "http"
	if e.dialer.tls != nil {
		scheme = "https"
	}
	target := url.URL{Scheme: scheme, Host: e.address, Path: "/etcdserverpb." + method}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(append(body, message...)))
	if err != nil {
		return nil, err
	}
	request.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"kvferry"}}
	if token != "" {
		request.Header["Token"] = []string{token}
	}
	return request, nil
}

// outcome is the error that an answer carries, whose body was read. An answer without a body has its status in its header.
func outcome(response *http.Response) error {
	from := response.Trailer
	if response.Header.Get("Grpc-Status") != "" {
		from = response.Header
	}
	number, err := strconv.Atoi(from.Get("Grpc-Status"))
	switch {
	case err != nil:
		return fmt.Errorf("the answer has no status of gRPC, but %.40q", from.Get("Grpc-Status"))
	case code(number) == codeOK:
		return nil
	}
	message := from.Get("Grpc-Message")
	if plain, err := url.PathUnescape(message); err == nil {
		message = plain
	}
	return &callError{code(number), message[:min(len(message), maxQuoted)]}
}

// unframed is the message in the body of an answer.
func unframed(body []byte) ([]byte, error) {
	if len(body) < prefixLength || body[0] != 0 || uint64(binary.BigEndian.Uint32(body[1:])) != uint64(len(body)-prefixLength) {
		return nil, fmt.Errorf("the answer of %d bytes is not one message of gRPC", len(body))
	}
	return body[prefixLength:], nil
}
