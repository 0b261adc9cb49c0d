package security

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kvferry/core/reload"

	"go.uber.org/zap"
)

// maxChain is how many certificates a peer may present: its own, and those between it and the authority.
const maxChain = 8

// certified is the credentials of an engine that has a certificate from a file.
type certified struct {
	certificate tls.Certificate
	authorities *x509.CertPool
	patterns    []pattern // of the peers that are let in; none: all that the authorities vouch for
}

// certificateSource reads an engine's certificate, its key and the certificates of the authorities.
func certificateSource(s Settings, log *zap.Logger) (source, error) {
	patterns, err := parsePatterns(s.Peers)
	if err != nil {
		return source{}, err
	}
	files := []reload.File{{Setting: "KVFERRY_TLS_CERT", Path: s.CertFile}, {Setting: "KVFERRY_TLS_KEY", Path: s.KeyFile, Private: true}, {Setting: "KVFERRY_TLS_CA", Path: s.CAFile}}
	return source{Files: files, Make: func(contents [][]byte) (credentials, error) {
		pair, err := tls.X509KeyPair(contents[0], contents[1])
		if err != nil {
			return nil, fmt.Errorf("KVFERRY_TLS_CERT, KVFERRY_TLS_KEY: %s, %s: %w", s.CertFile, s.KeyFile, err)
		}
		authorities, err := parseAuthorities(contents[2])
		if err != nil {
			return nil, fmt.Errorf("KVFERRY_TLS_CA: %s: %w", s.CAFile, err)
		}
		c := &certified{pair, authorities, patterns}
		return c, c.checkOwn(s, log)
	}}, nil
}

// parseAuthorities reads the certificates of authorities. Where one is no good, none is taken.
func parseAuthorities(text []byte) (*x509.CertPool, error) {
	pool, count := x509.NewCertPool(), 0
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		pool.AddCert(certificate)
		count++
	}
	if count == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	return pool, nil
}

// checkOwn refuses a certificate that no peer can accept. It warns of one that peers with the same settings refuse: they
// may have others.
func (c *certified) checkOwn(s Settings, log *zap.Logger) error {
	if len(c.certificate.Certificate) > maxChain {
		return fmt.Errorf("KVFERRY_TLS_CERT: %s has %d certificates, more than %d", s.CertFile, len(c.certificate.Certificate), maxChain)
	}
	chain := make([]*x509.Certificate, len(c.certificate.Certificate))
	for i, der := range c.certificate.Certificate {
		var err error
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("KVFERRY_TLS_CERT: %s: %w", s.CertFile, err)
		}
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		err := c.verify(chain, use)
		var invalid x509.CertificateInvalidError
		switch {
		case err == nil:
		case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
			return fmt.Errorf("KVFERRY_TLS_CERT: %s must be for servers and for clients (extended key usage): an engine is both", s.CertFile)
		default:
			log.Warn("peers with the same KVFERRY_TLS_CA will refuse this engine's certificate",
				zap.String("KVFERRY_TLS_CERT", s.CertFile), zap.String("KVFERRY_TLS_CA", s.CAFile), zap.Error(err))
			return nil
		}
	}
	return nil
}

func (c *certified) own() *tls.Certificate { return &c.certificate }

func (c *certified) String() string {
	text := "certificates"
	if c.certificate.Leaf != nil {
		text = fmt.Sprintf("the certificate of %s (until %s)", strings.Join(namesIn(c.certificate.Leaf), ", "), c.certificate.Leaf.NotAfter.UTC().Format(time.DateTime))
	}
	if len(c.patterns) == 0 {
		return text + ", for all that KVFERRY_TLS_CA vouches for"
	}
	return text + fmt.Sprintf(", for %d names in KVFERRY_TLS_PEERS", len(c.patterns))
}

// verify follows the chain from the first certificate to an authority.
func (c *certified) verify(chain []*x509.Certificate, use x509.ExtKeyUsage) error {
	between := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		between.AddCert(certificate)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: c.authorities, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}})
	return err
}

func (c *certified) check(certificates []*x509.Certificate, use x509.ExtKeyUsage) (Peer, error) {
	switch {
	case len(certificates) == 0:
		return Peer{}, refuse(NoCertificate, nil, "presents no certificate")
	case len(certificates) > maxChain:
		return Peer{}, refuse(BadCertificate, nil, "presents %d certificates, more than %d", len(certificates), maxChain)
	}
	if err := c.verify(certificates, use); err != nil {
		return Peer{}, refusalOf(certificates[0], err)
	}
	own := certificates[0]
	peer := Peer{Names: namesIn(own), until: own.NotAfter}
	if len(c.patterns) > 0 && !slices.ContainsFunc(c.patterns, func(p pattern) bool { return p.fits(own) }) {
		return Peer{}, refuse(OtherName, nil, "presents a certificate of %s, and KVFERRY_TLS_PEERS names none of these", strings.Join(peer.Names, ", "))
	}
	return peer, nil
}

// refusalOf says why a certificate was not accepted.
func refusalOf(certificate *x509.Certificate, err error) *Refusal {
	if id, ok := strings.CutPrefix(certificate.Issuer.CommonName, authorityName); ok {
		return refuse(OtherSecret, err, "presents a certificate of a cluster secret (%.16q): it uses KVFERRY_SECRET_FILE, and this engine KVFERRY_TLS_CERT", id)
	}
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return refuse(BadCertificate, err, "presents a certificate that KVFERRY_TLS_CA does not vouch for: it is of %.200q", certificate.Issuer.String())
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return refuse(BadCertificate, err, "presents a certificate that is valid from %s to %s, which is not now by this machine's clock",
			certificate.NotBefore.UTC().Format(time.DateTime), certificate.NotAfter.UTC().Format(time.DateTime))
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return refuse(BadCertificate, err, "presents a certificate that is not for servers and for clients (extended key usage)")
	}
	return refuse(BadCertificate, err, "presents a certificate that is no good: %v", err)
}

// namesIn are the names that a certificate is for, a few of them, quoted where a peer could have put anything there.
func namesIn(c *x509.Certificate) []string {
	var names []string
	for _, uri := range c.URIs {
		names = append(names, uri.String())
	}
	names = append(names, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return []string{"nobody (it has no DNS name, IP address or URI)"}
	}
	const shown = 4
	if len(names) > shown {
		names = append(names[:shown], fmt.Sprintf("%d more", len(names)-shown))
	}
	for i, name := range names {
		names[i] = strings.Trim(fmt.Sprintf("%.200q", name), `"`)
	}
	return names
}
