package metadata

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"kvferry/core/address"
	"kvferry/core/security"
	"kvferry/core/shut"
	"kvferry/core/status"
)

// Time-outs of a Client that sets none.
const (
	DefaultConnectTimeout = 5 * time.Second
	DefaultReplyTimeout   = 60 * time.Second
)

// Client asks handshake servers, one request per connection. The zero value has the default limits. Its methods may
// be called from any goroutine, and take peers as "host:port" with IPv6 hosts in brackets. They return when the
// context ends or a time-out has passed, whichever is first. Errors name the peer and carry status.DNS when its host
// is unknown, status.Socket when it cannot be reached or breaks the connection off, status.RejectHandshake when it
// refuses or answers something else, status.MalformedJSON when the answer cannot be read.
type Client struct {
	ConnectTimeout time.Duration // for resolving the host and trying all of its addresses, and to be answered at all; 0: DefaultConnectTimeout
	ReplyTimeout   time.Duration // from the connection on; 0: DefaultReplyTimeout
	MaxLength      int           // longest frame that is sent or taken, in bytes; 0: DefaultMaxLength

	Security *security.Policy // by what peers are asked, and who they are; nil: without TLS

	// SpeaksTLS says that the peers are known to speak TLS: with the mode prefer, too, they are not asked without.
	SpeaksTLS bool

	// Identity is that of the engine that has to answer; "": any engine of the cluster may. It is for SendNotify under TLS, and
	// another engine makes an error with security.ErrOtherEngine.
	Identity string
}

// notifyBody is a Notification as it is sent, and the answer to one.
type notifyBody struct {
	Name string `json:"name"`
	Text string `json:"notify_msg"`
}

// addressedNotify is a notification for one engine.
type addressedNotify struct {
	notifyBody

	Extensions notifyRequest `json:"kvferry"`
}

// notifyRequest is what a kvferry engine adds to a notification. With certificates from files TLS does not prove the identity.
type notifyRequest struct {
	For string `json:"for,omitempty"` // the identity of the engine that it is for
}

// notifyAnswer is the answer to a notification.
type notifyAnswer struct {
	notifyBody

	Extensions json.RawMessage `json:"kvferry,omitempty"` // of notifyExtensions; another program may put anything there
}

// notifyExtensions is what a kvferry engine adds to a refusal. Mooncake ignores the key.
type notifyExtensions struct {
	Reason      string `json:"reason"`
	OtherEngine bool   `json:"other_engine,omitempty"` // it is not the engine that the notification is for
}

// probeBody is the answer to a probe.
type probeBody struct {
	Status string `json:"status"`

	Extensions json.RawMessage `json:"kvferry,omitempty"` // of probeExtensions; another program may put anything there
}

// probeExtensions is what a kvferry engine adds. Mooncake ignores the key.
type probeExtensions struct {
	Name string `json:"name"` // what peers open
}

// FetchDescriptor asks a peer for the descriptor of its segment.
func (c Client) FetchDescriptor(ctx context.Context, peer string) (*Descriptor, error) {
	reply, from, proven, err := c.askPeer(ctx, peer, kindMetadata, []byte("{}"))
	if err != nil {
		return nil, err
	}
	d, err := ParseDescriptor(reply)
	if err == nil {
		err = checkAnswer(d, from, proven)
	}
	if err != nil {
		return nil, peerError(peer, kindMetadata, err)
	}
	return d, nil
}

// CheckNotify says whether SendNotify can send a notification: both strings must fit a frame together.
func (c Client) CheckNotify(n Notification) error {
	const longestCharacter, rest = 6, 128 // bytes of JSON: "\u0001", and keys and punctuation
	if (len(n.Name)+len(n.Text))*longestCharacter+rest <= orDefault(c.MaxLength, DefaultMaxLength) {
		return nil
	}
	return c.checkLength(c.notification(n))
}

// notification is the body of a request. It is no other than Mooncake's where no engine in particular has to answer.
func (c Client) notification(n Notification) []byte {
	if c.Identity == "" {
		return mustEncode(notifyBody(n))
	}
	return mustEncode(addressedNotify{notifyBody(n), notifyRequest{c.Identity}})
}

// checkLength says whether the body of a request fits a frame.
func (c Client) checkLength(body []byte) error {
	if limit := orDefault(c.MaxLength, DefaultMaxLength); len(body)+1 > limit {
		return status.Errorf(status.InvalidArgument,
			"the request takes %d bytes, over the limit of %d (MC_HANDSHAKE_MAX_LENGTH)", len(body)+1, limit)
	}
	return nil
}

// SendNotify sends a notification to a peer. CheckNotify says whether it fits. Bytes that are not UTF-8 arrive as U+FFFD, as
// with Mooncake: a frame is JSON.
func (c Client) SendNotify(ctx context.Context, peer string, n Notification) error {
	reply, err := c.ask(ctx, peer, kindNotify, c.notification(n))
	if err != nil {
		return err
	}
	var answer notifyAnswer
	if err := json.Unmarshal(reply, &answer); err != nil {
		return peerError(peer, kindNotify, jsonError("the answer", err))
	}
	if answer.Text == "" {
		return peerError(peer, kindNotify, refusalOf(answer))
	}
	return nil
}

// refusalOf is the error for a notification that the peer did not take, with its reason if it gives one.
func refusalOf(answer notifyAnswer) error {
	var extensions notifyExtensions
	if json.Unmarshal(answer.Extensions, &extensions) != nil || extensions.Reason == "" {
		return status.Errorf(status.RejectHandshake, "the peer did not take the notification")
	}
	err := status.Errorf(status.RejectHandshake, "the peer did not take the notification: %.300q", extensions.Reason)
	if extensions.OtherEngine {
		err = status.Errorf(status.RejectHandshake, "%w: %w", security.ErrOtherEngine, err)
	}
	return err
}

// Probe returns nil if a server answers at a peer's handshake port. A server that accepts the connection and closes it
// without an answer counts as alive: Mooncake up to 0.3.9 answers a probe so.
func (c Client) Probe(ctx context.Context, peer string) error {
	_, err := c.identify(ctx, peer)
	return err
}

// identify is Probe, and returns the name of the engine that answers. It is "" where the engine sends none, as Mooncake's.
func (c Client) identify(ctx context.Context, peer string) (name string, err error) {
	reply, err := c.ask(ctx, peer, kindProbe, []byte("{}"))
	if errors.Is(err, errNoFrame) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var answer probeBody
	if err := json.Unmarshal(reply, &answer); err != nil {
		return "", peerError(peer, kindProbe, jsonError("the answer", err))
	}
	if answer.Status != "success" {
		return "", peerError(peer, kindProbe, status.Errorf(status.RejectHandshake, "%w: %.200q", errProbeRefused, answer.Status))
	}
	var extensions probeExtensions
	if json.Unmarshal(answer.Extensions, &extensions) != nil {
		return "", nil // the extensions are optional
	}
	return extensions.Name, nil
}

// errProbeRefused is in the error of a probe that an engine has answered, which says nothing of itself.
var errProbeRefused = errors.New("an engine answers that it refuses this one")

// ask sends one request and returns the JSON of its reply.
func (c Client) ask(ctx context.Context, peer string, kind frameKind, body []byte) ([]byte, error) {
	reply, _, _, err := c.askPeer(ctx, peer, kind, body)
	return reply, err
}

// askPeer is ask, and says who has proven to have answered; proven is false where nobody has, since the request went without TLS.
func (c Client) askPeer(ctx context.Context, peer string, kind frameKind, body []byte) (reply []byte, from security.Peer, proven bool, err error) {
	if err := c.checkLength(body); err != nil {
		return nil, from, false, peerError(peer, kind, err)
	}
	request := encodeFrame(kind, false, body)
	plain := c.Security.Mode() == security.Off
	reply, from, err = c.insist(ctx, peer, kind, request, plain)
	if !plain && errors.Is(err, errNotTLS) && c.mayAskPlainly(peer, kind) {
		plain = true
		reply, from, err = c.insist(ctx, peer, kind, request, plain)
	}
	if err != nil {
		return nil, from, false, peerError(peer, kind, err)
	}
	return reply, from, !plain, nil
}

// A server that is asked by very many at once closes connections before it answers. Those that ask for a descriptor then do so
// again, for the time that a connection may take, after pauses that grow up to maxInsistPause.
const (
	minInsistPause = 20 * time.Millisecond
	maxInsistPause = 500 * time.Millisecond
)

// insist asks, again where the peer has closed the connection without an answer. A notification might arrive twice that way, and
// a probe takes such an end for an answer.
func (c Client) insist(ctx context.Context, peer string, kind frameKind, request []byte, plain bool) ([]byte, security.Peer, error) {
	until := time.Now().Add(orDefault(c.ConnectTimeout, DefaultConnectTimeout))
	for pause := minInsistPause; ; pause = min(2*pause, maxInsistPause) {
		reply, from, err := c.attempt(ctx, peer, kind, request, plain)
		wait := varied(pause)
		if err == nil || kind != kindMetadata || !c.closedUnanswered(err) || time.Now().Add(wait).After(until) {
			return reply, from, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return reply, from, err
		}
	}
}

// varied is half of a pause to one and a half: those that were closed together do not come back together, forked siblings included.
func varied(pause time.Duration) time.Duration {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails: see crypto/rand
	return pause/2 + time.Duration(binary.LittleEndian.Uint64(random[:])%uint64(pause))
}

// closedUnanswered reports whether a connection was closed before a byte of the answer came. A Mooncake engine that is asked by TLS
// ends it like that, too. Where such an engine may be asked without TLS, that comes next.
func (c Client) closedUnanswered(err error) bool {
	if errors.Is(err, errNotTLS) && c.Security.Mode() != security.Require {
		return false
	}
	return errors.Is(err, errNoFrame) || errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, errNothingSent) && errors.Is(err, syscall.ECONNRESET)
}

// attempt asks on one connection.
func (c Client) attempt(ctx context.Context, peer string, kind frameKind, request []byte, plain bool) ([]byte, security.Peer, error) {
	conn, err := c.dial(ctx, peer)
	if err != nil {
		return nil, security.Peer{}, err
	}
	defer shut.Close(conn)
	stop := context.AfterFunc(ctx, func() { shut.Close(conn) })
	defer stop()
	var reply []byte
	over, from, err := c.secure(ctx, conn, plain)
	if err == nil {
		reply, err = c.exchange(conn, over, kind, request)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		err = status.Errorf(status.Socket, "given up: %w", context.Cause(ctx))
	case err == nil && !plain:
		c.Security.Note(peer)
	}
	return reply, from, err
}

// dial connects to the first of the peer's addresses that accepts the connection.
func (c Client) dial(ctx context.Context, peer string) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: orDefault(c.ConnectTimeout, DefaultConnectTimeout)}
	conn, err := dialer.DialContext(ctx, "tcp", peer)
	if err != nil {
		return nil, status.Errorf(dialCode(err), "%w%s", err, address.HintAtConnect(err))
	}
	return conn.(*net.TCPConn), nil
}

func dialCode(err error) status.Code {
	var unresolved *net.DNSError
	var badAddress *net.AddrError
	switch {
	case errors.As(err, &unresolved):
		return status.DNS
	case errors.As(err, &badAddress):
		return status.InvalidArgument
	}
	return status.Socket
}

// exchange sends a request over a new connection and reads the reply. Closing the connection ends it.
func (c Client) exchange(conn *net.TCPConn, over stream, kind frameKind, request []byte) ([]byte, error) {
	if err := conn.SetDeadline(time.Now().Add(orDefault(c.ReplyTimeout, DefaultReplyTimeout))); err != nil {
		return nil, status.Errorf(status.Socket, "%w", err)
	}
	if _, err := over.Write(request); err != nil {
		return nil, status.Errorf(status.Socket, "sending the request: %w", err)
	}
	reply, err := readReply(over, kind, orDefault(c.MaxLength, DefaultMaxLength))
	if err != nil {
		if isSecure(over) { // the peer may refuse the certificate only now
			err = security.ExplainAnswer(conn.RemoteAddr(), err)
		}
		return nil, status.Errorf(status.Of(err, status.Socket), "reading the answer: %w", err)
	}
	return reply, nil
}

// readReply reads a frame that has to be of the given kind.
func readReply(r io.Reader, kind frameKind, maxLength int) ([]byte, error) {
	f, err := readFrame(r, maxLength)
	if err != nil {
		return nil, err
	}
	if f.kind != kind || f.old {
		return nil, status.Errorf(status.RejectHandshake, "it is a frame of kind %s", f.kind)
	}
	return f.readBody()
}

// peerError adds the request and the peer to an error.
func peerError(peer string, kind frameKind, err error) error {
	return status.Errorf(status.Of(err, status.Socket), "%s request to peer %.300s: %w", kind, peer, err)
}

// orDefault is value, unless that is 0.
func orDefault[T int | int64 | time.Duration](value, otherwise T) T {
	if value == 0 {
		return otherwise
	}
	return value
}
