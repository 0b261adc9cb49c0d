package security

import (
	"cmp"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"

	"kvferry/core/status"
)

// Kind is in which way it could not be proven who a peer is. The values are labels of a metric.
type Kind string

// The kinds.
const (
	NoCertificate  Kind = "no_certificate"
	OtherSecret    Kind = "other_secret"    // a certificate of another cluster secret, or of none
	BadCertificate Kind = "certificate"     // expired, not for engines, or not by an authority that is trusted
	OtherName      Kind = "name"            // KVFERRY_TLS_PEERS does not have its names
	OtherEngine    Kind = "other_engine"    // an engine of the cluster, but not the one that was meant
	OtherProtocol  Kind = "protocol"        // something else than a kvferry engine, or another version of TLS
	Plain          Kind = "plain"           // it comes without TLS, and has to use it
	ByPeer         Kind = "refused_by_peer" // the peer refuses this engine's certificate
	Broken         Kind = "handshake"       // TLS failed otherwise: the bytes were altered, or the peer closed the connection
)

// Failures are those of one kind with one peer.
type Failures struct {
	Peer  string // its IP address, Local, Store, or OtherPeers
	Kind  Kind
	Count uint64
}

const (
	// Local is a peer on this host, by a socket without an address.
	Local = "local"
	// Store is who has written an entry of the metadata store.
	Store = "store"
	// OtherPeers are the peers beyond the number that is shown.
	OtherPeers = "other"
)

// failures counts by peer and kind. Anybody who reaches a port can add to it, so it is bounded: so many peers are shown by their
// addresses as there were first.
type failures struct {
	shown int

	mu     sync.Mutex
	peers  map[string]struct{}
	counts map[failure]uint64
}

type failure struct {
	peer string
	kind Kind
}

func (f *failures) add(peer net.Addr, kind Kind) { f.addNamed(addressOf(peer), kind) }

func (f *failures) addNamed(name string, kind Kind) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.peers, f.counts = map[string]struct{}{}, map[failure]uint64{}
	}
	if _, known := f.peers[name]; !known {
		if len(f.peers) < f.shown {
			f.peers[name] = struct{}{}
		} else {
			name = OtherPeers
		}
	}
	f.counts[failure{name, kind}]++
}

// all are the counts, by peer and kind.
func (f *failures) all() []Failures {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]Failures, 0, len(f.counts))
	for what, n := range f.counts {
		all = append(all, Failures{what.peer, what.kind, n})
	}
	slices.SortFunc(all, func(a, b Failures) int { return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Kind, b.Kind)) })
	return all
}

// addressOf is the IP address of a peer.
func addressOf(peer net.Addr) string {
	tcp, ok := peer.(*net.TCPAddr)
	if !ok {
		return Local
	}
	return tcp.AddrPort().Addr().Unmap().String()
}

// CountPlain counts a peer that is refused because it comes without TLS.
func (p *Policy) CountPlain(peer net.Addr) {
	if p != nil {
		p.failures.add(peer, Plain)
	}
}

// countFailed counts the failure of a handshake. One that a lost connection or the end of an engine explains does not count.
func (p *Policy) countFailed(peer net.Addr, err error) {
	if kind := kindOf(err); kind != "" {
		p.failures.add(peer, kind)
	}
}

// kindOf is "" for what says nothing about the peer.
func kindOf(err error) Kind {
	var refusal *Refusal
	var notTLS tls.RecordHeaderError
	text := err.Error()
	switch {
	case errors.As(err, &refusal):
		return refusal.Kind
	case errors.As(err, &notTLS), strings.Contains(text, "protocol version"), strings.Contains(text, "unsupported versions"),
		strings.Contains(text, "application protocol"), strings.Contains(text, "ALPN"):
		return OtherProtocol
	case strings.Contains(text, "didn't provide a certificate"):
		return NoCertificate
	case isOfCertificate(text):
		return ByPeer
	}
	if code, _ := explained(err); code == status.RejectHandshake || IsOfTLS(err) {
		return Broken
	}
	return ""
}
