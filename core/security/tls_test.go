package security

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEnginesWithOneSecretProveToEachOtherWhoTheyAre(t *testing.T) {
	for name, through := range networks {
		t.Run(name, func(t *testing.T) {
			server, client := withSecrets(t, oldSecret), withSecrets(t, oldSecret)
			atServer, atClient := requireMeet(t, through, server, client)
			assert.Equal(t, Peer{Identity: client.identity}, atServer)
			assert.Equal(t, Peer{Identity: server.identity}, atClient)
			s, c := meet(t, through, server.Policy, client.Policy, server.identity)
			assert.NoError(t, s.err)
			assert.NoError(t, c.err)
		})
	}
}

func TestAnEngineWithAnotherSecretIsRefusedOnBothSides(t *testing.T) {
	for name, through := range networks {
		t.Run(name, func(t *testing.T) {
			server, client := withSecrets(t, oldSecret), withSecrets(t, otherSecret)
			atServer, atClient := meet(t, through, server.Policy, client.Policy, "")
			// The client is the first one to see a certificate.
			require.ErrorContains(t, atClient.err, "is refused: it presents a certificate of another cluster secret")
			assert.Equal(t, status.RejectHandshake, status.Of(atClient.err, status.OK))
			assert.ErrorContains(t, atServer.err, "refuses this engine's certificate")
			assert.EqualValues(t, 1, client.Counters().Refused)
		})
	}
}

// A stranger does not check whom it talks to: it is the server that must refuse it.
func TestAStrangerIsRefusedByTheServerBeforeAByteIsReadAndCounted(t *testing.T) {
	for name, change := range map[string]struct {
		with   *Policy
		change func(*tls.Config)
		reason string
		kind   Kind
	}{
		"another secret":          {withSecrets(t, otherSecret).Policy, func(*tls.Config) {}, "another cluster secret", OtherSecret},
		"certificates of a CA":    {newEngine(t, newCA(t, "a CA").issue(nil, "decode")).Policy, func(*tls.Config) {}, "no cluster secret has made", OtherSecret},
		"no certificate":          {withSecrets(t, oldSecret).Policy, func(c *tls.Config) { c.GetClientCertificate = nil }, "certificate", NoCertificate},
		"TLS 1.2":                 {withSecrets(t, oldSecret).Policy, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, "does not offer TLS 1.3", OtherProtocol},
		"another protocol":        {withSecrets(t, oldSecret).Policy, func(c *tls.Config) { c.NextProtos = []string{"h2"} }, "no kvferry engine", OtherProtocol},
		"no protocol":             {withSecrets(t, oldSecret).Policy, func(c *tls.Config) { c.NextProtos = nil }, "no kvferry engine", OtherProtocol},
		"the key of someone else": {withSecrets(t, oldSecret).Policy, withoutKey, "fails in the TLS handshake", Broken},
	} {
		t.Run(name, func(t *testing.T) {
			server := withSecrets(t, oldSecret)
			server.failures.shown = 1
			c, s := overTCP(t)
			defer c.Close()
			defer s.Close()
			refused := make(chan error, 1)
			go func() {
				_, _, err := server.Accept(context.Background(), s)
				s.Close()
				refused <- err
			}()
			config := change.with.Client("")
			config.VerifyConnection = nil
			change.change(config)
			conn := tls.Client(c, config)
			_, writing := conn.Write([]byte("payload"))
			_, reading := conn.Read(make([]byte, 1))
			assert.Error(t, errors.Join(writing, reading))
			err := <-refused
			require.ErrorContains(t, err, change.reason)
			assert.ErrorContains(t, err, c.LocalAddr().String(), "the error names the peer")
			assert.Equal(t, []Failures{{c.LocalAddr().(*net.TCPAddr).IP.String(), change.kind, 1}}, server.Counters().Failures)
		})
	}
}

// withoutKey has a client present its engine's certificate, and sign with another key.
func withoutKey(c *tls.Config) {
	present := c.GetClientCertificate
	c.GetClientCertificate = func(i *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		certificate, err := present(i)
		stolen := *certificate
		a, _ := authorityOf(otherSecret)
		stolen.PrivateKey = a.key
		return &stolen, err
	}
}

func TestAConnectionThatAnotherEngineAnswersIsRefused(t *testing.T) {
	server, client, meant := withSecrets(t, oldSecret), withSecrets(t, oldSecret), withSecrets(t, oldSecret)
	atServer, atClient := meet(t, overTCP, server.Policy, client.Policy, meant.identity)
	require.ErrorContains(t, atClient.err, "is engine "+server.identity+", and the connection is meant for engine "+meant.identity)
	assert.Error(t, atServer.err)
	assert.Equal(t, []Failures{{OtherPeers, OtherEngine, 1}}, client.Counters().Failures)
	assert.Equal(t, []Failures{{OtherPeers, ByPeer, 1}}, server.Counters().Failures)
}

func TestAPeerThatSpeaksPlainTCPIsTold(t *testing.T) {
	e := withSecrets(t, oldSecret)
	for name, serve := range map[string]bool{"as client": false, "as server": true} {
		t.Run(name, func(t *testing.T) {
			c, s := overTCP(t)
			defer c.Close()
			defer s.Close()
			_, err := s.Write(bytes.Repeat([]byte{3, 0, 0, 0, 0, 0, 0, 0, 1}, 8)) // a frame of Mooncake's
			require.NoError(t, err)
			if serve {
				_, _, err = e.Accept(context.Background(), c)
			} else {
				_, _, err = e.Connect(context.Background(), c, "")
			}
			require.ErrorContains(t, err, "does not speak TLS")
			assert.ErrorContains(t, err, s.LocalAddr().String())
		})
	}
}

func TestAPeerThatClosesAmidTheHandshakeIsTold(t *testing.T) {
	e := withSecrets(t, oldSecret)
	c, s := overTCP(t)
	defer c.Close()
	require.NoError(t, s.(*net.TCPConn).CloseWrite())
	defer s.Close()
	_, _, err := e.Connect(context.Background(), c, "")
	assert.ErrorContains(t, err, "has closed the connection amid the TLS handshake")
}

func TestASilentPeerEndsWithItsTime(t *testing.T) {
	e := withSecrets(t, oldSecret)
	c, s := overTCP(t)
	defer c.Close()
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_, _, err := e.Accept(ctx, c)
	require.ErrorContains(t, err, "in time")
	assert.Equal(t, status.Socket, status.Of(err, status.OK))
}

// An attacker who has recorded a good connection and sends it once more gets nothing.
func TestARecordedConnectionCannotBeReplayed(t *testing.T) {
	server, client := withSecrets(t, oldSecret), withSecrets(t, oldSecret)
	c, s := overTCP(t)
	defer c.Close()
	defer s.Close()
	done := make(chan []byte, 1)
	go func() {
		conn, _, err := server.Accept(context.Background(), s)
		if err != nil {
			done <- nil
			return
		}
		b := make([]byte, 7)
		_, _ = io.ReadFull(conn, b)
		done <- b
	}()
	recorded := &tap{Conn: c}
	conn, _, err := client.Connect(context.Background(), recorded, "")
	require.NoError(t, err)
	_, err = conn.Write([]byte("payload"))
	require.NoError(t, err)
	require.Equal(t, "payload", string(<-done))

	replay, again := overTCP(t)
	defer replay.Close()
	defer again.Close()
	_, err = replay.Write(recorded.sent)
	require.NoError(t, err)
	_, _, err = server.Accept(context.Background(), again)
	assert.Error(t, err)
}

func TestNothingThatNamesAnEngineIsSentInTheClear(t *testing.T) {
	ca := newCA(t, "the cluster's own authority")
	certified := func() engine { return newEngine(t, ca.issue(nil, "decode.kv.svc", "spiffe://cluster/ns/kv/sa/decode")) }
	secret := func() engine { return withSecrets(t, oldSecret) }
	for name, make := range map[string]func() engine{"secret": secret, "certificates": certified} {
		t.Run(name, func(t *testing.T) {
			server, client := make(), make()
			var sent [2]*tap
			tapped := func(t testing.TB) (net.Conn, net.Conn) {
				c, s := overTCP(t)
				sent[0], sent[1] = &tap{Conn: c}, &tap{Conn: s}
				return sent[0], sent[1]
			}
			atServer, _ := meet(t, tapped, server.Policy, client.Policy, server.identity)
			require.NoError(t, atServer.err)
			for _, s := range sent {
				require.NotEmpty(t, s.sent)
				for _, name := range []string{server.identity, client.identity, "engine", "cluster", "decode"} {
					assert.NotContains(t, string(s.sent), name)
				}
				for _, der := range server.files.Current().own().Certificate {
					assert.NotContains(t, string(s.sent), string(der))
				}
			}
		})
	}
}

func TestNoConnectionIsResumed(t *testing.T) {
	server, client := withSecrets(t, oldSecret), withSecrets(t, oldSecret)
	config := client.Client("")
	config.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 3 {
		c, s := overTCP(t)
		go func() {
			conn, _, err := server.Accept(context.Background(), s)
			if err == nil {
				_, _ = conn.Write([]byte{1})
			}
			s.Close()
		}()
		conn := tls.Client(c, config)
		_, err := conn.Read(make([]byte, 1)) // tickets would come before that
		require.NoError(t, err)
		assert.False(t, conn.ConnectionState().DidResume)
		assert.EqualValues(t, tls.VersionTLS13, conn.ConnectionState().Version)
		c.Close()
	}
}

func TestASecretIsReplacedInTwoStepsInAnyOrder(t *testing.T) {
	states := [][]string{{oldSecret}, {newSecret, oldSecret}, {newSecret}}
	for i, atServer := range states {
		for j, atClient := range states {
			server, client := withSecrets(t, atServer...), withSecrets(t, atClient...)
			s, c := meet(t, overPipe, server.Policy, client.Policy, server.identity)
			if i-j == 2 || j-i == 2 {
				assert.Error(t, s.err)
				assert.Error(t, c.err)
				continue
			}
			require.NoError(t, s.err, "server in step %d, client in step %d", i, j)
			require.NoError(t, c.err, "server in step %d, client in step %d", i, j)
			assert.Equal(t, client.identity, s.peer.Identity)
		}
	}
	// The order within the file is the operator's: the other one works, too.
	requireMeet(t, overPipe, withSecrets(t, oldSecret, newSecret), withSecrets(t, newSecret))
}

func TestPeersThatStillUseTheOldSecretAreCounted(t *testing.T) {
	server := withSecrets(t, newSecret, oldSecret)
	peer, _ := requireMeet(t, overPipe, server, withSecrets(t, oldSecret))
	assert.True(t, peer.Older)
	peer, _ = requireMeet(t, overPipe, server, withSecrets(t, newSecret, oldSecret))
	assert.False(t, peer.Older)
	assert.EqualValues(t, 1, server.Counters().Older)
}

func TestARotationFailsNoHandshakeThatIsUnderWay(t *testing.T) {
	files := []string{secretFile(t, oldSecret), secretFile(t, oldSecret)}
	engines := []engine{newEngine(t, Settings{SecretFile: files[0]}), newEngine(t, Settings{SecretFile: files[1]})}
	stop, met := make(chan struct{}), make(chan struct{})
	var workers sync.WaitGroup
	for i := range 4 {
		workers.Go(func() {
			for {
				server, client := engines[i%2], engines[(i+1)%2]
				s, c := meet(t, overPipe, server.Policy, client.Policy, server.identity)
				assert.NoError(t, s.err)
				assert.NoError(t, c.err)
				select {
				case met <- struct{}{}:
				case <-stop:
					return
				}
			}
		})
	}
	some := func() {
		for range 8 {
			<-met
		}
	}
	for n, step := range [][]string{{newSecret, oldSecret}, {newSecret}, {otherSecret, newSecret}, {otherSecret}} {
		for _, i := range []int{1, 0} {
			some()
			write(t, files[i], strings.Join(step, "\n"))
			// An engine that has not read its file yet would be two steps behind one that took the next.
			require.Eventually(t, func() bool { return engines[i].Generation() == uint64(n+1) }, patience, time.Millisecond)
		}
	}
	some()
	close(stop)
	workers.Wait()
	for _, e := range engines {
		assert.EqualValues(t, 4, e.Counters().Reloads)
		assert.Zero(t, e.Counters().Refused)
	}
}

func TestAConnectionOfASecretThatWasTakenOutIsFoundOut(t *testing.T) {
	path := secretFile(t, newSecret, oldSecret)
	server := newEngine(t, Settings{SecretFile: path})
	client := withSecrets(t, oldSecret)
	c, s := overTCP(t)
	defer c.Close()
	defer s.Close()
	go func() { _, _, _ = client.Connect(context.Background(), c, "") }()
	conn, peer, err := server.Accept(context.Background(), s)
	require.NoError(t, err)
	assert.True(t, server.IsCurrent(peer))
	write(t, path, oldSecret+"\n"+newSecret)
	assert.EqualValues(t, 1, server.Generation())
	assert.False(t, server.IsCurrent(peer))
	peer, err = server.Recheck(conn.ConnectionState())
	require.NoError(t, err)
	assert.True(t, server.IsCurrent(peer), "it would be accepted again")
	write(t, path, newSecret)
	_, err = server.Recheck(conn.ConnectionState())
	assert.ErrorContains(t, err, "another cluster secret")
}

func TestAConnectionOfACertificateThatHasExpiredIsFoundOut(t *testing.T) {
	e := newEngine(t, newCA(t, "cluster").issue(nil, "decode.kv"))
	assert.True(t, e.IsCurrent(Peer{until: time.Now().Add(time.Hour)}))
	assert.False(t, e.IsCurrent(Peer{until: time.Now().Add(-time.Second)}))
}

func TestAFloodOfCertificatesIsRefusedUnread(t *testing.T) {
	e := withSecrets(t, oldSecret)
	_, err := e.files.Current().check(make([]*x509.Certificate, maxSecrets+1), x509.ExtKeyUsageServerAuth)
	assert.ErrorContains(t, err, "9 certificates")
	_, err = e.files.Current().check(nil, x509.ExtKeyUsageServerAuth)
	assert.ErrorContains(t, err, "no certificate")
}

func TestErrorsOfAnUpConnectionKeepTheirText(t *testing.T) {
	assert.NoError(t, Explain(nil, nil))
	err := Explain(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 5), Port: 1234}, net.ErrClosed)
	assert.EqualError(t, err, "the peer at 10.0.0.5:1234 fails in the TLS handshake: "+net.ErrClosed.Error())
	assert.ErrorIs(t, err, net.ErrClosed)
}
