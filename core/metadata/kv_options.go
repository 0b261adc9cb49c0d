package metadata

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"time"

	"kvferry/core/status"
)

// StoreOptions say how a central store is reached, whatever its kind. The zero value has the defaults.
type StoreOptions struct {
	ConnectTimeout time.Duration // 0: the kind's own
	ReplyTimeout   time.Duration // for a whole request; 0: the kind's own
	CA             string        // PEM file of the certificates that vouch for a store's over TLS; "": the system's
	Cert, Key      string        // PEM files of a certificate of our own and its key, for TLS; "": none
	Insecure       bool          // over TLS, whoever answers is taken for the store
}

// tls reads the files for connections over TLS. An error carries status.InvalidArgument.
func (o StoreOptions) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.Insecure}
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, status.Errorf(status.InvalidArgument, "KVFERRY_METADATA_CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, status.Errorf(status.InvalidArgument, "KVFERRY_METADATA_CA: %s has no certificate in it", o.CA)
		}
	}
	if o.Cert != "" || o.Key != "" {
		pair, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, status.Errorf(status.InvalidArgument, "KVFERRY_METADATA_CERT, KVFERRY_METADATA_KEY: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
