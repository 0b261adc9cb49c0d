package metaserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"kvferry/core/reload"
)

// HTTPS by files that may change while the server runs:
//
//  1. Each TLS handshake has the files read again, where they have not been for a second, and uses what they give by then.
//  2. A request on a connection that has begun by former files is answered, if its client's certificate still is good (certified).

// secured is what the files for HTTPS give. Nothing changes it.
type secured struct {
	config  *tls.Config
	clients *x509.CertPool // that vouch for clients' certificates; nil where clients need none
}

// String describes the certificate for people.
func (s *secured) String() string {
	leaf := s.config.Certificates[0].Leaf
	names := leaf.DNSNames
	for _, ip := range leaf.IPAddresses {
		names = append(slices.Clip(names), ip.String())
	}
	return fmt.Sprintf("the certificate of %.300q (until %s)", strings.Join(names, ", "), leaf.NotAfter.UTC().Format(time.DateTime))
}

// secure reads the files for HTTPS; nil for HTTP.
func (o *Options) secure() (*reload.Reloader[*secured], error) {
	if o.TLSCert == "" {
		return nil, nil
	}
	files := []reload.File{{Setting: "TLS certificate", Path: o.TLSCert}, {Setting: "TLS key", Path: o.TLSKey, Private: true}}
	if o.TLSClientCA != "" {
		files = append(files, reload.File{Setting: "certificates of the clients' authorities", Path: o.TLSClientCA})
	}
	r, err := reload.New(reload.Source[*secured]{Files: files, Make: o.makeSecured}, o.Log)
	if err != nil {
		return nil, invalid("%w", err)
	}
	return r, nil
}

// makeSecured makes the configuration of HTTPS. A client without a certificate is let in, and then refused at the path of the
// metadata alone: checks of the server's health have none.
func (o *Options) makeSecured(contents [][]byte) (*secured, error) {
	pair, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return nil, fmt.Errorf("the TLS certificate %s with the key %s cannot be used: %w", o.TLSCert, o.TLSKey, err)
	}
	// A session that is resumed would bring what was verified before.
	config := &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true,
	}
	if o.TLSClientCA == "" {
		return &secured{config: config}, nil
	}
	config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
	if !config.ClientCAs.AppendCertsFromPEM(contents[2]) {
		return nil, fmt.Errorf("there is no certificate of a clients' authority in %s", o.TLSClientCA)
	}
	return &secured{config: config, clients: config.ClientCAs}, nil
}

// tls is the configuration for net/http; nil for HTTP.
func (s *Server) tls() *tls.Config {
	if s.files == nil {
		return nil
	}
	return &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		current := s.files.Current()
		if c := slotted(hello.Conn); c != nil {
			c.secured = current
		}
		return current.config, nil
	}}
}

func (s *Server) closeFiles() error {
	if s.files == nil {
		return nil
	}
	return s.files.Close()
}

// certified says whether a client has the certificate that it needs. The TLS handshake has verified it by the files that were in
// force then; if they have changed, it is verified again.
func (s *Server) certified(r *http.Request) bool {
	if s.options.TLSClientCA == "" {
		return true
	}
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return false
	}
	current := s.files.Current()
	if c, ok := r.Context().Value(connKey{}).(*slottedConn); ok && c != nil && c.secured == current {
		return true
	}
	return verifyClient(r.TLS.PeerCertificates, current.clients) == nil
}

// verifyClient is what crypto/tls does with the certificates of a client.
func verifyClient(chain []*x509.Certificate, authorities *x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("there is no certificate")
	}
	between := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		between.AddCert(certificate)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: authorities, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}
