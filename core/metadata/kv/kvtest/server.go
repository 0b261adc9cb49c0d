package kvtest

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kvferry/internal/porttest"

	"github.com/stretchr/testify/require"
)

// Server is a program that serves a central store on a port of 127.0.0.1.
type Server struct {
	t       *testing.T
	Address string // host:port
	command func() *exec.Cmd
	ready   string // in a line that the program prints when it serves
	running *exec.Cmd
	ended   chan struct{} // closed when running is no more
}

// startServer starts a program, which ends with the test. command is told a free port, and one more.
func startServer(t *testing.T, ready string, command func(port, second string) *exec.Cmd) *Server {
	for range 10 { // somebody may take the ports before the program does
		port, second := freePort(t), freePort(t)
		s := &Server{t: t, Address: "127.0.0.1:" + port, ready: ready, command: func() *exec.Cmd { return command(port, second) }}
		if output, ok := s.run(); ok {
			t.Cleanup(s.Kill)
			return s
		} else if !strings.Contains(strings.ToLower(output), "in use") {
			t.Fatalf("%v has ended:\n%s", s.command(), output)
		}
	}
	t.Fatal("no port stays free")
	return nil
}

// run starts the program and waits until it serves, or has ended: then what it printed is returned.
func (s *Server) run() (output string, ok bool) {
	s.running = s.command()
	s.running.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	reader, writer := io.Pipe()
	s.running.Stdout, s.running.Stderr = writer, writer
	require.NoError(s.t, s.running.Start())
	s.ended = make(chan struct{})
	go func() {
		defer close(s.ended)
		s.running.Wait()
		writer.Close()
	}()
	var printed strings.Builder
	for lines := bufio.NewScanner(reader); lines.Scan(); {
		printed.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), s.ready) {
			go io.Copy(io.Discard, reader)
			return "", true
		}
	}
	s.Kill()
	return printed.String(), false
}

// Kill ends the program as a crash would.
func (s *Server) Kill() {
	s.running.Process.Kill()
	<-s.ended
}

// Restart starts the program again after Kill.
func (s *Server) Restart() {
	output, ok := s.run()
	require.True(s.t, ok, output)
}

// program is the file of a program from a package of Debian. Without it the test is skipped, or fails where everything
// must run: in CI, or with KVFERRY_REQUIRE_ALL=1.
func program(t *testing.T, name, debian string) string {
	file, err := exec.LookPath(name)
	if err == nil {
		return file
	}
	reason := name + " is missing: apt-get install " + debian
	if os.Getenv("CI") == "true" || os.Getenv("KVFERRY_REQUIRE_ALL") == "1" {
		t.Fatal(reason)
	}
	t.Skip(reason)
	return ""
}

// ClosedPort is an address of this machine where nobody listens, and which nobody else gets before the test ends.
func ClosedPort(t *testing.T) string {
	t.Helper()
	_, port := porttest.Bound(t)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// freePort is a port of this machine that nobody has now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return portOf(l.Addr().String())
}

func portOf(address string) string { return address[strings.LastIndex(address, ":")+1:] }

// Certificates are PEM files: an authority, and a certificate of its for 127.0.0.1, of servers and clients.
type Certificates struct{ CA, Cert, Key string }

func NewCertificates(t *testing.T) *Certificates {
	folder := t.TempDir()
	write := func(name, kind string, content []byte) string {
		file := filepath.Join(folder, name)
		require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600))
		return file
	}
	authority := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "an authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "a store"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	authorityDER, err := x509.CreateCertificate(rand.Reader, &authority, &authority, &authorityKey.PublicKey, authorityKey)
	require.NoError(t, err)
	leafDER, err := x509.CreateCertificate(rand.Reader, &leaf, &authority, &leafKey.PublicKey, authorityKey)
	require.NoError(t, err)
	keyDER, err := x509.MarshalECPrivateKey(leafKey)
	require.NoError(t, err)
	return &Certificates{
		CA: write("ca.pem", "CERTIFICATE", authorityDER), Cert: write("cert.pem", "CERTIFICATE", leafDER), Key: write("key.pem", "EC PRIVATE KEY", keyDER),
	}
}
