package security

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"kvferry/core/status"

	"golang.org/x/sys/unix"
)

// Refusal says why a peer is refused.
type Refusal struct {
	Kind Kind
	// Reason goes after the name of the peer: "presents a certificate of another cluster secret".
	Reason string
	Err    error // the cause; may be nil
}

func (r *Refusal) Error() string { return "the peer " + r.Reason }

func (r *Refusal) Unwrap() error { return r.Err }

func refuse(kind Kind, cause error, format string, args ...any) *Refusal {
	return &Refusal{Kind: kind, Reason: fmt.Sprintf(format, args...), Err: cause}
}

// Explain puts the error of a TLS connection into words that name the peer and say what to do. It does so for errors of the
// handshake, and for those of the first read of a client: by then the server may have refused its certificate. An error
// that is not TLS's own keeps its text. The result carries status.RejectHandshake where a side has refused the other one,
// and status.Socket otherwise; nil stays nil.
func Explain(peer net.Addr, err error) error {
	if err == nil {
		return nil
	}
	code, reason := explained(err)
	return &status.Error{Code: code, Err: &explanation{fmt.Sprintf("the peer at %v %s", peer, reason), err}}
}

// ExplainAnswer is Explain for the first answer that a client reads over TLS, where the server has not got so far as to answer:
// the server may have refused the client's certificate, and anything else is no matter of TLS.
func ExplainAnswer(peer net.Addr, err error) error {
	if reason := alert(err); reason != "" {
		return &status.Error{Code: status.RejectHandshake, Err: &explanation{fmt.Sprintf("the peer at %v %s", peer, reason), err}}
	}
	return err
}

type explanation struct {
	text string
	err  error
}

func (e *explanation) Error() string { return e.text }

func (e *explanation) Unwrap() error { return e.err }

// IsNotTLS reports whether the error of a client's handshake says that the peer does not speak TLS: it answers something else, or
// closes the connection before it has answered. Somebody on the way can have it look like that.
func IsNotTLS(err error) bool {
	var refusal *Refusal
	var notTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &refusal):
		return false
	case errors.As(err, &notTLS):
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// IsOfEngine reports whether the error of a client's handshake, or of its first answer, says that a kvferry engine is there: one
// of the two does not accept the other's certificate.
func IsOfEngine(err error) bool {
	var refusal *Refusal
	if errors.As(err, &refusal) {
		return !errors.Is(err, errOtherProtocol)
	}
	return err != nil && isOfCertificate(err.Error())
}

// IsOfTLS reports whether it was TLS itself that failed: what came was not what the other side sends so. Somebody on the way has
// altered it, it was recorded on another connection, or the peer is no kvferry engine. A lost connection is no such failure.
func IsOfTLS(err error) bool { return err != nil && strings.Contains(err.Error(), "tls: ") }

// isOfCertificate reports whether the text of an error is that of an alert by which the peer refuses this engine's certificate.
func isOfCertificate(text string) bool {
	return strings.Contains(text, "remote error") && (strings.Contains(text, "certificate") || strings.Contains(text, "access denied"))
}

// explained is what goes after the name of the peer.
func explained(err error) (status.Code, string) {
	var refusal *Refusal
	var notTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &refusal):
		return status.RejectHandshake, "is refused: it " + refusal.Reason
	case errors.As(err, &notTLS):
		return status.RejectHandshake, "does not speak TLS: it has no secret or certificate, or is no kvferry engine"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return status.Socket, "has not ended the TLS handshake in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return status.RejectHandshake, fmt.Sprintf("has closed the connection amid the TLS handshake (%v): it has no secret or certificate, is no kvferry engine, or has refused this one, as its log then says", err)
	}
	if strings.Contains(err.Error(), "didn't provide a certificate") {
		return status.RejectHandshake, "is refused: it presents no certificate"
	}
	if reason := alert(err); reason != "" {
		return status.RejectHandshake, reason
	}
	return status.Socket, "fails in the TLS handshake: " + err.Error()
}

// alert puts the alerts of a peer into words. crypto/tls exports their texts alone.
func alert(err error) string {
	text := err.Error()
	remote := strings.Contains(text, "remote error")
	switch {
	case isOfCertificate(text):
		return "refuses this engine's certificate (" + text + "): its secret or certificate authority is another one, or KVFERRY_TLS_PEERS leaves " +
			"this engine out, or it takes this connection for one to another engine; its log says which"
	case strings.Contains(text, "protocol version"), strings.Contains(text, "unsupported versions"):
		return "does not offer TLS 1.3 (" + text + ")"
	case strings.Contains(text, "application protocol"), strings.Contains(text, "ALPN"):
		return "speaks TLS, but is no kvferry engine (" + text + ")"
	case remote:
		return "refuses the TLS handshake (" + text + ")"
	}
	return ""
}
