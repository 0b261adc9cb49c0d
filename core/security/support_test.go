package security

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what must happen in tests.
const patience = 30 * time.Second

const (
	oldSecret   = "0d8c7a6e5b4f3a2918070615243342518091a2b3c4d5e6f70819203142536475"
	newSecret   = "f1e2d3c4b5a6978869504132231405f6e7d8c9baabfc0d1e2f3041526374a5b6"
	otherSecret = "9a0b1c2d3e4f50617283940516273849a0b1c2d3e4f5061728394a5b6c7d8e9f"
)

func randomIdentity() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// write puts a file in place at once, as a careful operator does.
func write(t testing.TB, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+".next", []byte(content), 0o600))
	require.NoError(t, os.Rename(path+".next", path))
}

func secretFile(t testing.TB, secrets ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, strings.Join(secrets, "\n")+"\n")
	return path
}

// engine is a policy with what tests ask of it.
type engine struct {
	*Policy
	log *observer.ObservedLogs
}

func newEngine(t testing.TB, s Settings) engine {
	t.Helper()
	core, observed := observer.New(zapcore.DebugLevel)
	p, err := New(s, randomIdentity(), zap.New(core))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	if p.files != nil {
		p.files.Interval = 0
	}
	return engine{p, observed}
}

// withSecrets is an engine with a secret file of its own.
func withSecrets(t testing.TB, secrets ...string) engine {
	t.Helper()
	return newEngine(t, Settings{SecretFile: secretFile(t, secrets...)})
}

// network connects two sides.
type network func(t testing.TB) (client, server net.Conn)

func overPipe(testing.TB) (client, server net.Conn) { return net.Pipe() }

func overTCP(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	server, err = l.Accept()
	require.NoError(t, err)
	return client, server
}

var networks = map[string]network{"a pipe": overPipe, "TCP": overTCP}

// outcome is how one side fared.
type outcome struct {
	peer Peer
	err  error
}

// meet has a client connect to the engine with an identity, and a byte go each way. A client's error is that of its first
// read where the handshake went well.
func meet(t testing.TB, through network, server, client *Policy, identity string) (atServer, atClient outcome) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, s := through(t)
	deadline, _ := ctx.Deadline()
	require.NoError(t, errors.Join(c.SetDeadline(deadline), s.SetDeadline(deadline)))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer s.Close()
		conn, peer, err := server.Accept(ctx, s)
		if atServer = (outcome{peer, err}); err == nil {
			_, atServer.err = conn.Write([]byte{1})
		}
		b := make([]byte, 1)
		if atServer.err == nil {
			_, atServer.err = conn.Read(b)
		}
	}()
	conn, peer, err := client.Connect(ctx, c, identity)
	if atClient = (outcome{peer, err}); err == nil {
		b := make([]byte, 1)
		if _, err = conn.Read(b); err == nil {
			_, err = conn.Write(b)
		}
		atClient.err = Explain(c.RemoteAddr(), err)
	}
	c.Close()
	<-done
	return atServer, atClient
}

// requireMeet fails unless two engines accept each other.
func requireMeet(t testing.TB, through network, server, client engine) (atServer, atClient Peer) {
	t.Helper()
	s, c := meet(t, through, server.Policy, client.Policy, "")
	require.NoError(t, s.err)
	require.NoError(t, c.err)
	return s.peer, c.peer
}

// ca is a certificate authority in a folder.
type ca struct {
	t           testing.TB
	folder      string
	certificate *x509.Certificate
	key         crypto.Signer
}

func newCA(t testing.TB, name string) *ca {
	t.Helper()
	a := &ca{t: t, folder: t.TempDir(), key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	require.NoError(t, err)
	a.certificate, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	write(t, a.file("ca.pem"), pemOf("CERTIFICATE", der))
	return a
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

func mustKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return key
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func (a *ca) file(name string) string { return filepath.Join(a.folder, name) }

// issue makes a certificate for names, and returns the settings that use it. change may be nil.
func (a *ca) issue(change func(*x509.Certificate), names ...string) Settings {
	a.t.Helper()
	return a.issueFor(newKey(a.t), change, names...)
}

func (a *ca) issueFor(key crypto.Signer, change func(*x509.Certificate), names ...string) Settings {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if u, err := url.Parse(name); err == nil && u.Scheme != "" {
			template.URIs = append(template.URIs, u)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	require.NoError(a.t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	id := randomIdentity()
	s := Settings{CertFile: a.file(id + ".pem"), KeyFile: a.file(id + ".key"), CAFile: a.file("ca.pem")}
	write(a.t, s.CertFile, pemOf("CERTIFICATE", der))
	write(a.t, s.KeyFile, pemOf("PRIVATE KEY", encoded))
	return s
}

// tap records what goes into a connection.
type tap struct {
	net.Conn
	sent []byte
}

func (t *tap) Write(b []byte) (int, error) {
	t.sent = append(t.sent, b...)
	return t.Conn.Write(b)
}
