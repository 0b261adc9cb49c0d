// Package security says who an engine's peers are, and keeps others from reading what passes between them: by TLS 1.3 in
// both directions, from a secret that all engines of a cluster have, or from certificates.
//
// The way of a handshake:
//
//  1. New reads the files that the settings name, and makes a Policy of them. A file that is no good is an error here.
//  2. Accept and Connect run TLS over a connection. Before that a Policy looks, at most once a second, whether a file has
//     changed (core/reload). What is wrong with a changed file is logged, and the last good content stays in force.
//  3. Each side presents its certificate and proves that it has the key. With a secret the certificate is the engine's own,
//     made in memory, and vouched for by a key that is derived from the secret (secret.go). Otherwise it comes from a file
//     (certificates.go).
//  4. Each side checks what the other one presents: whether it is of the cluster, and which engine or which name it is.
//  5. A refusal says who was refused and why, on this side by the error, on the other by a TLS alert that Explain puts into
//     words.
//
// Sign and Verify do for entries of a store what TLS does for connections (sign.go).
package security

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"kvferry/core/reload"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// Policy authenticates peers. Its methods may be called from any goroutine.
type Policy struct {
	mode     Mode
	identity string
	files    *reload.Reloader[credentials] // nil where security is off

	refused, older atomic.Uint64
	failures       failures

	mu    sync.Mutex
	known map[string]struct{} // peers that have spoken TLS; see Knows
}

// maxKnown bounds the peers that are remembered. What is beyond is forgotten all at once.
const maxKnown = 1 << 16

// Note remembers that a peer has proven to belong to the cluster.
func (p *Policy) Note(peer string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known) >= maxKnown || p.known == nil {
		p.known = map[string]struct{}{}
	}
	p.known[peer] = struct{}{}
}

// Knows reports whether a peer was noted: with the mode prefer it is not believed any more that it cannot do so.
func (p *Policy) Knows(peer string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, known := p.known[peer]
	return known
}

// Peer is who a certificate was made for.
type Peer struct {
	// Identity is the core.Engine.Identity of the engine that the certificate was made for. With certificates from files it
	// is "": the engine says its identity in the hello, inside of TLS, and is
	// believed because the owner of the certificate is trusted not to lie.
	Identity string
	// Names are those in a certificate from a file; none with a secret.
	Names []string
	// Older says that the peer was accepted by another secret than the first one of this engine's file.
	Older bool

	until      time.Time // when its certificate expires; zero: never
	generation uint64    // of this engine's files, when the handshake began
}

// Counters are what a Policy has done.
type Counters struct {
	Reloads       uint64 // changed files that were taken
	FailedReloads uint64 // changed files that were not, because of an error; one that lasts counts once
	Refused       uint64 // peers that were refused for what they presented
	Older         uint64 // peers that were accepted by another secret than the first one: rotation has not come to its end

	Failures []Failures // by peer and kind
}

type source = reload.Source[credentials]

// credentials are what one state of the files gives. Nothing changes them.
type credentials interface {
	// own is what this engine presents.
	own() *tls.Certificate
	// check says who presents certificates, when the peer has proven that it has the key of the first one. An error is a
	// *Refusal.
	check(certificates []*x509.Certificate, use x509.ExtKeyUsage) (Peer, error)
	// String describes them for people, without anything secret.
	String() string
}

// identityForm is core.Engine.Identity.
var identityForm = regexp.MustCompile(`^[0-9a-f]{32}$`)

// New makes the policy of one engine from its settings. identity is the engine's: 32 hexadecimal digits. An error names the
// settings that it is about, and carries status.InvalidArgument. The caller closes the policy.
func New(s Settings, identity string, log *zap.Logger) (*Policy, error) {
	if !identityForm.MatchString(identity) {
		return nil, status.Errorf(status.InvalidArgument, "%.80q is no identity of an engine", identity)
	}
	mode, err := s.mode()
	if err != nil {
		return nil, err
	}
	p := &Policy{mode: mode, identity: identity, failures: failures{shown: s.ShownPeers}}
	if mode == Off {
		if s.SecretFile != "" || s.usesCertificates() {
			log.Warn("KVFERRY_SECURITY=off: the secret or certificate that is configured is not used, and anybody may connect")
		}
		return p, nil
	}
	from, err := s.source(identity, log)
	if err != nil {
		return nil, err
	}
	if p.files, err = reload.New(from, log); err != nil {
		return nil, err
	}
	return p, nil
}

// source is where the credentials come from.
func (s Settings) source(identity string, log *zap.Logger) (source, error) {
	if s.SecretFile == "" {
		return certificateSource(s, log)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return source{}, status.Errorf(status.Context, "making a key: %w", err)
	}
	return secretSource(s.SecretFile, identity, key), nil
}

// Mode is what is demanded of peers. It is Off without a policy.
func (p *Policy) Mode() Mode {
	if p == nil {
		return Off
	}
	return p.mode
}

// Identity is that of the engine.
func (p *Policy) Identity() string { return p.identity }

// Counters are those since the start.
func (p *Policy) Counters() Counters {
	c := Counters{Refused: p.refused.Load(), Older: p.older.Load(), Failures: p.failures.all()}
	if p.files != nil {
		c.Reloads, c.FailedReloads = p.files.Changes(), p.files.Failures()
	}
	return c
}

// Generation grows when a changed file is taken. Descriptors that were signed before that should be signed again: peers
// may no longer accept what vouched for the signature.
func (p *Policy) Generation() uint64 {
	if p.files == nil {
		return 0
	}
	p.files.Current()
	return p.files.Changes()
}

// String describes the policy for people: "require, by 2 secrets (1f0c…, 77ab…)".
func (p *Policy) String() string {
	if p.files == nil {
		return p.mode.String()
	}
	return p.mode.String() + ", by " + p.files.Last().String()
}

// Close ends what the policy has started. It waits for a file that is being read, for a second at most.
func (p *Policy) Close() error {
	if p.files == nil {
		return nil
	}
	return p.files.Close()
}
