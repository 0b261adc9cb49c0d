package kv

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"time"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// Options are the settings of a central store: those that all kinds share, and those that single kinds have. The zero
// value has the defaults.
type Options struct {
	Connection Connection
	HTTPToken  string // bearer token for an HTTP store; "" for none
	Etcd       EtcdOptions
	Redis      RedisOptions
	Log        *zap.Logger // nil: none
}

// Connection says how a store is reached.
type Connection struct {
	ConnectTimeout time.Duration // 0: the kind's own
	ReplyTimeout   time.Duration // for a whole request; 0: the kind's own
	CA             string        // PEM file of the certificates that vouch for a store's over TLS; "": the system's
	Cert, Key      string        // PEM files of a certificate of our own and its key, for TLS; "": none
	Insecure       bool          // over TLS, the store's certificate is not checked
}

// EtcdOptions are the settings of an etcd store that others do not have.
type EtcdOptions struct {
	Username, Password string        // "" for none
	TLS                bool          // connections are over TLS
	Lease              time.Duration // after which etcd forgets the entries of an engine that has ended; whole seconds; 0: never
}

// RedisOptions are the settings of a Redis store that others do not have.
type RedisOptions struct {
	Username, Password string // "" for none; a user name needs a password
	DB                 int    // which of the server's databases
}

// TLS reads the files for connections over TLS. An error carries status.InvalidArgument.
func (c Connection) TLS() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.Insecure}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, status.Errorf(status.InvalidArgument, "KVFERRY_METADATA_CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, status.Errorf(status.InvalidArgument, "KVFERRY_METADATA_CA: %s has no certificate in it", c.CA)
		}
	}
	if c.Cert != "" || c.Key != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, status.Errorf(status.InvalidArgument, "KVFERRY_METADATA_CERT, KVFERRY_METADATA_KEY: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
