package security

import (
	"crypto/x509"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// named is a certificate for names.
func named(t testing.TB, names ...string) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else if strings.Contains(name, ":") {
			u, err := url.Parse(name)
			require.NoError(t, err)
			c.URIs = append(c.URIs, u)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	return c
}

func TestAStarStandsForOneSegmentAndEverythingElseForItself(t *testing.T) {
	for _, c := range []struct {
		pattern   string
		fits, not []string
	}{
		{"decode.kv.svc", []string{"decode.kv.svc", "DECODE.kv.svc", "decode.kv.svc."}, []string{"decode.kv", "a.decode.kv.svc", "decode.kv.svc.evil", "decodeXkv.svc", "*.kv.svc"}},
		{"*.kv.svc", []string{"decode.kv.svc"}, []string{"kv.svc", ".kv.svc", "a.decode.kv.svc", "decode.kv.svc.evil"}},
		{"rank.*.kv", []string{"rank.3.kv"}, []string{"rank.3.4.kv", "rank..kv"}},
		{"10.0.0.7", []string{"10.0.0.7", "::ffff:10.0.0.7"}, []string{"10.0.0.70", "fd00::7"}},
		{"fd00::7", []string{"fd00:0::7"}, []string{"fd00::8", "10.0.0.7"}},
		{"spiffe://cluster/ns/*/sa/decode",
			[]string{"spiffe://cluster/ns/blue/sa/decode", "spiffe://cluster/ns/b%2Fe/sa/decode"},
			[]string{"spiffe://other/ns/blue/sa/decode", "spiffe://cluster/ns/a/b/sa/decode", "spiffe://cluster/ns//sa/decode", "spiffe://cluster/ns/blue/sa/decode/x",
				"spiffe://cluster/ns/blue/sa/decode?x", "spiffe://cluster/ns/blue/sa/decode#x", "spiffe://u@cluster/ns/blue/sa/decode", "https://cluster/ns/blue/sa/decode",
				"spiffe:cluster/ns/blue/sa/decode"}},
		{"spiffe://cluster/*", []string{"spiffe://cluster/decode"}, []string{"spiffe://cluster/", "spiffe://cluster", "spiffe://cluster/decode?x"}},
	} {
		patterns, err := parsePatterns(c.pattern)
		require.NoError(t, err)
		for _, name := range c.fits {
			assert.True(t, patterns[0].fits(named(t, name)), "%s for %s", c.pattern, name)
			assert.True(t, patterns[0].fits(named(t, "else.where", "10.9.9.9", "x://y/z", name)), "%s for %s among others", c.pattern, name)
		}
		for _, name := range c.not {
			assert.False(t, patterns[0].fits(named(t, name)), "%s for %s", c.pattern, name)
		}
		assert.False(t, patterns[0].fits(named(t)))
	}
}

func TestPatternsThatMeanNothingAreErrors(t *testing.T) {
	for _, text := range []string{
		"*", "a,,b", ",", " ", "a.b,", "de*.kv", "a..b", ".kv", "10.0.0.0/8", "fe80::1%eth0", "a:1", "spiffe://", "spiffe://cluster//x", "*://a/b", "spiffe://u@c/x",
		"spiffe://c/x?y", "spiffe://c/x#y", "spiffe://c/%zz", "a b.c", strings.Repeat("a", maxPatternLength+1), strings.Repeat("a.b,", maxPatterns) + "a.b",
	} {
		_, err := parsePatterns(text)
		require.Error(t, err, text)
		assert.Contains(t, err.Error(), "KVFERRY_TLS_PEERS")
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
	}
}

func FuzzPatterns(f *testing.F) {
	f.Add("spiffe://cluster/ns/*/sa/decode, *.kv", "decode.kv", "spiffe://cluster/ns/a/sa/decode")
	f.Add("10.0.0.7", "10.0.0.7", "x:y")
	f.Fuzz(func(t *testing.T, text, dns, uri string) {
		patterns, err := parsePatterns(text)
		if err != nil || len(patterns) == 0 {
			return
		}
		c := &x509.Certificate{DNSNames: []string{dns}}
		if u, err := url.Parse(uri); err == nil {
			c.URIs = []*url.URL{u}
		}
		for _, p := range patterns {
			if !p.fits(c) {
				continue
			}
			// A name that fits differs from the pattern where there is a star, and nowhere else.
			assert.False(t, p.ip.IsValid())
			same := func(name string) bool {
				segments := strings.FieldsFunc(name, func(r rune) bool { return r == '.' || r == '/' })
				for _, s := range p.segments {
					if s != "*" && !slices.Contains(segments, s) && !strings.Contains(name, s) {
						return false
					}
				}
				return true
			}
			fitting := foldName(dns)
			if p.uri {
				fitting = c.URIs[0].String()
			}
			assert.True(t, same(fitting), "%q for %q", p.text, fitting)
		}
	})
}
