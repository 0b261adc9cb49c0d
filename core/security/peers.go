package security

import (
	"crypto/x509"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"kvferry/core/status"
)

const (
	maxPatterns      = 64
	maxPatternLength = 1024
)

// pattern is one entry of KVFERRY_TLS_PEERS: a DNS name, an IP address or a URI. A segment of a name, between dots, or of a
// URI, between slashes, may be *: it stands for any one segment. Everything else is compared exactly; DNS names
// are in lower case.
type pattern struct {
	text     string
	ip       netip.Addr // valid for an IP address
	uri      bool
	segments []string // of a URI or a DNS name
}

// parsePatterns reads KVFERRY_TLS_PEERS; no text gives no patterns. An error carries status.InvalidArgument.
func parsePatterns(text string) ([]pattern, error) {
	if text == "" {
		return nil, nil
	}
	var patterns []pattern
	for entry := range strings.SplitSeq(text, ",") {
		p, reason := parsePattern(strings.TrimSpace(entry))
		if reason != "" {
			return nil, status.Errorf(status.InvalidArgument, "KVFERRY_TLS_PEERS: %.200q %s", entry, reason)
		}
		patterns = append(patterns, p)
	}
	if len(patterns) > maxPatterns {
		return nil, status.Errorf(status.InvalidArgument, "KVFERRY_TLS_PEERS has %d names, more than %d", len(patterns), maxPatterns)
	}
	return patterns, nil
}

// parsePattern reads one entry, or says what is wrong with it.
func parsePattern(text string) (p pattern, reason string) {
	p = pattern{text: text}
	if text == "" || len(text) > maxPatternLength {
		return p, "is empty or too long"
	}
	if ip, err := netip.ParseAddr(text); err == nil {
		if ip.Zone() != "" {
			return p, "has an interface, and addresses in certificates have none"
		}
		p.ip = ip.Unmap()
		return p, ""
	}
	if scheme, rest, isURI := strings.Cut(text, "://"); isURI {
		p.uri, p.segments = true, append([]string{scheme}, strings.Split(rest, "/")...)
		if parsed, err := url.Parse(text); err != nil || !isPlain(parsed) {
			return p, "is no URI, or has a user, a query or a fragment"
		}
	} else {
		p.segments = strings.Split(foldName(text), ".")
		if strings.ContainsAny(text, "/:@ ") {
			return p, "is no DNS name, no IP address and no URI"
		}
	}
	for _, segment := range p.segments {
		if segment == "" {
			return p, "has an empty segment"
		}
		if segment != "*" && strings.Contains(segment, "*") {
			return p, "has a * beside other characters: it stands for a whole segment"
		}
	}
	if p.segments[0] == "*" && (p.uri || len(p.segments) == 1) {
		return p, "would fit every name"
	}
	return p, ""
}

// foldName is the form in which DNS names are compared.
func foldName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// isPlain reports whether a URI has nothing but a scheme, a host and a path.
func isPlain(u *url.URL) bool {
	return u.User == nil && u.RawQuery == "" && !u.ForceQuery && u.Fragment == "" && u.Opaque == ""
}

// fits reports whether one of the names in a certificate is that of the pattern.
func (p pattern) fits(c *x509.Certificate) bool {
	switch {
	case p.ip.IsValid():
		for _, raw := range c.IPAddresses {
			if ip, ok := netip.AddrFromSlice(raw); ok && ip.Unmap() == p.ip {
				return true
			}
		}
		return false
	case p.uri:
		return slices.ContainsFunc(c.URIs, func(u *url.URL) bool {
			scheme, rest, ok := strings.Cut(u.String(), "://")
			return ok && isPlain(u) && p.fitsSegments(append([]string{scheme}, strings.Split(rest, "/")...))
		})
	}
	return slices.ContainsFunc(c.DNSNames, func(name string) bool { return p.fitsSegments(strings.Split(foldName(name), ".")) })
}

func (p pattern) fitsSegments(segments []string) bool {
	return slices.EqualFunc(p.segments, segments, func(pattern, segment string) bool {
		return pattern == segment || pattern == "*" && segment != ""
	})
}
