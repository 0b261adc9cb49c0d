// Package metaserver is a central metadata store for a cluster of engines: a map of keys to values behind HTTP, with the
// requests and answers of Mooncake's HTTP metadata server.
//
// A request goes this way:
//
//  1. slots accepts its connection in the share of the client's address. When the slots are taken, an older connection gives way.
//  2. net/http reads its header, within a time and a size.
//  3. answer checks path, token and key, and reads the value within a time and a size.
//  4. The store changes within its limits, and wakes the snapshot.
//  5. ServeHTTP counts the answer and sends it.
package metaserver

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"kvferry/core/address"
	"kvferry/core/fair"
	"kvferry/core/reload"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// Defaults of Options.
const (
	DefaultPath           = "/metadata"
	DefaultMaxKeys        = 100_000
	DefaultMaxValue       = 1 << 20
	DefaultMaxBytes       = 1 << 30
	DefaultMaxConnections = 1024
)

// Limits that no option changes.
const (
	maxKey         = 1024 // bytes of a key
	maxHeader      = 8 << 10
	headerTimeout  = 5 * time.Second  // for a header to arrive
	requestTimeout = 15 * time.Second // for a whole request to arrive, and for its answer to leave
	idleTimeout    = 30 * time.Second // between the requests of a connection
	closeTimeout   = 2 * time.Second  // for the requests that are being answered when the server is closed
)

// Bounds of the limits that options set, so that sums of them fit an int64, and connections have descriptors.
const (
	largestLimit    = 1 << 40
	mostConnections = 1 << 20
)

// Options say where a server listens and what it keeps. Zero fields have defaults.
type Options struct {
	Host     string // address or name to listen at; "": every address
	Port     int    // 0: any free port
	Path     string // of the requests for metadata; DefaultPath
	Snapshot string // file to keep the entries in; "": memory alone
	Token    string // bearer token that requests for metadata must have; "": none
	TLSCert  string // PEM file with the certificates for HTTPS; "": HTTP. These three files are read again when they change
	TLSKey   string // PEM file with their key

	// TLSClientCA is a PEM file with certificates. Requests for metadata must then come with a client certificate that one of
	// them vouches for. "": clients need none.
	TLSClientCA string

	MaxKeys  int64 // entries; DefaultMaxKeys
	MaxValue int64 // bytes of one value; DefaultMaxValue
	MaxBytes int64 // bytes of all keys and values together; DefaultMaxBytes

	MaxConnections int64 // open at once, and half of the process's descriptors at most; DefaultMaxConnections

	Log *zap.Logger // nil: none

	stepTimeout time.Duration // in tests: replaces headerTimeout, requestTimeout and idleTimeout
}

// Server serves metadata until it is closed.
type Server struct {
	options  Options
	address  string // connection string
	log      *zap.Logger
	store    *store
	snapshot *snapshot // nil without a file
	requests counters
	slots    *slots
	files    *reload.Reloader[*secured] // nil without HTTPS
	http     *http.Server
	serving  sync.WaitGroup
}

// Start makes a server that answers by the time Start returns. An error carries status.InvalidArgument for an option
// that makes no sense, status.Socket where the server cannot listen, and status.Metadata for a snapshot that cannot be
// read, which is left as it is, or cannot be written.
func Start(o Options) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	files, err := o.secure()
	if err != nil {
		return nil, err
	}
	s := &Server{options: o, log: o.Log, store: newStore(o), files: files}
	listener, err := o.listen()
	if err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	if o.Snapshot != "" {
		if s.snapshot, err = openSnapshot(o.Snapshot, s.store, o.Log); err != nil {
			return nil, errors.Join(err, listener.Close(), s.closeFiles())
		}
	}
	s.serve(listener)
	s.warnIfOpen(listener.Addr().(*net.TCPAddr))
	return s, nil
}

// complete checks the options and fills in the defaults.
func (o *Options) complete() error {
	if o.Path == "" {
		o.Path = DefaultPath
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if host, bracketed := strings.CutPrefix(o.Host, "["); bracketed {
		o.Host = strings.TrimSuffix(host, "]")
	}
	if o.Port < 0 || o.Port > 1<<16-1 {
		return invalid("the port %d is not within 0 to 65535", o.Port)
	}
	if !strings.HasPrefix(o.Path, "/") || strings.ContainsAny(o.Path, "?#% ") || o.Path == healthPath || o.Path == metricsPath {
		return invalid("the path %q does not start with /, has one of ?#%% or a space in it, or is %s or %s",
			o.Path, healthPath, metricsPath)
	}
	if (o.TLSCert == "") != (o.TLSKey == "") {
		return invalid("a TLS certificate and its key are given together")
	}
	if o.TLSClientCA != "" && o.TLSCert == "" {
		return invalid("client certificates need a TLS certificate of the server")
	}
	if strings.ContainsAny(o.Token, "\r\n") {
		return invalid("the token has a line break in it")
	}
	return errors.Join(
		limit("number of keys", &o.MaxKeys, DefaultMaxKeys, largestLimit),
		limit("size of a value", &o.MaxValue, DefaultMaxValue, largestLimit),
		limit("size of all entries", &o.MaxBytes, DefaultMaxBytes, largestLimit),
		limit("number of connections", &o.MaxConnections, DefaultMaxConnections, mostConnections))
}

// limit checks a limit, and sets it where it is 0.
func limit(what string, value *int64, standard, most int64) error {
	if *value == 0 {
		*value = standard
	}
	if *value < 0 || *value > most {
		return invalid("the largest %s is to be 1 to %d, not %d", what, most, *value)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return status.Errorf(status.InvalidArgument, "metadata server: "+format, args...)
}

// warnIfOpen warns that other machines can change the metadata without a token or a certificate.
func (s *Server) warnIfOpen(at *net.TCPAddr) {
	if at.IP.IsLoopback() || s.options.Token != "" || s.options.TLSClientCA != "" {
		return
	}
	s.log.Warn("any program that reaches this metadata server can change its entries, and so redirect transfers: it listens beyond this machine, without a token or client certificates",
		zap.String("server", s.address), zap.Stringer("listens at", at))
}

func (o *Options) listen() (*net.TCPListener, error) {
	ctx, cancel := context.WithTimeout(context.Background(), headerTimeout) // a name may have to be resolved
	defer cancel()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp", net.JoinHostPort(o.Host, strconv.Itoa(o.Port)))
	if err != nil {
		return nil, status.Errorf(status.Socket, "metadata server: cannot listen: %w", err)
	}
	return l.(*net.TCPListener), nil
}

// serve starts the goroutine that accepts connections.
func (s *Server) serve(listener *net.TCPListener) {
	s.address = s.options.address(listener.Addr().(*net.TCPAddr))
	s.slots = newSlots(listener, min(int(s.options.MaxConnections), fair.ShareOfDescriptors(2)), patience, s.log)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	step := s.options.stepTimeout
	s.http = &http.Server{
		Handler: s, Protocols: &protocols,
		ReadHeaderTimeout: cmp.Or(step, headerTimeout), ReadTimeout: cmp.Or(step, requestTimeout),
		WriteTimeout: cmp.Or(step, requestTimeout), IdleTimeout: cmp.Or(step, idleTimeout),
		MaxHeaderBytes: maxHeader + 3*maxKey, // a byte of a key may be three in a URL
		TLSConfig:      s.tls(),
		ErrorLog:       log.New(faults{s.log}, "", 0),
		ConnState:      noteState,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, slotted(c))
		},
	}
	s.serving.Go(func() {
		var err error
		if s.files != nil {
			err = s.http.ServeTLS(s.slots, "", "")
		} else {
			err = s.http.Serve(s.slots)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("the metadata server accepts no more connections", zap.String("server", s.address), zap.Error(err))
		}
	})
}

// Address is the connection string by which engines on other machines reach the server.
func (s *Server) Address() string { return s.address }

// address has the host of the options or, where the server listens on every address, one that other machines can reach.
func (o *Options) address(bound *net.TCPAddr) string {
	host := o.Host
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = ownAddress()
	}
	u := url.URL{Scheme: "http", Host: net.JoinHostPort(host, strconv.Itoa(bound.Port)), Path: o.Path}
	if o.TLSCert != "" {
		u.Scheme = "https"
	}
	return u.String()
}

// ownAddress is an address by which other machines reach this one, IPv4 where there is one; 127.0.0.1 without a network.
func ownAddress() string {
	return cmp.Or(address.Published(false), address.Published(true), "127.0.0.1")
}

// faults logs the errors that net/http reports about connections: accept(2) or a TLS handshake has failed.
type faults struct{ log *zap.Logger }

func (f faults) Write(line []byte) (int, error) {
	f.log.Warn("a connection to the metadata server failed", zap.ByteString("reason", bytes.TrimSpace(line)))
	return len(line), nil
}

// Close stops accepting connections, waits a short time for requests that are being answered, and writes the snapshot for
// the last time. Each change that was answered with success, also during Close, is in it. The goroutines of the server have
// ended when Close returns, but those of connections that it cut off, which end at once. It may be called more than once.
// An error carries status.Metadata where the snapshot could not be written.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
	s.serving.Wait()
	s.store.freeze()
	err := s.closeFiles()
	if s.snapshot != nil {
		err = errors.Join(err, s.snapshot.close())
	}
	return err
}
