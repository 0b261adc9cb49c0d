package security

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

func TestEnginesWithCertificatesOfOneAuthorityAcceptEachOther(t *testing.T) {
	ca := newCA(t, "cluster")
	for name, through := range networks {
		t.Run(name, func(t *testing.T) {
			server, client := newEngine(t, ca.issue(nil, "prefill.kv")), newEngine(t, ca.issue(nil, "decode.kv", "10.0.0.7"))
			atServer, atClient := requireMeet(t, through, server, client)
			assert.Equal(t, []string{"decode.kv", "10.0.0.7"}, atServer.Names)
			assert.Equal(t, []string{"prefill.kv"}, atClient.Names)
			assert.Empty(t, atServer.Identity+atClient.Identity)
			for _, peer := range []Peer{atServer, atClient} {
				assert.True(t, peer.until.After(time.Now()))
			}
			assert.Zero(t, server.log.FilterLevelExact(zap.WarnLevel).Len())
		})
	}
}

func TestCertificatesThatAreNoGoodAreRefusedOnBothSides(t *testing.T) {
	ca := newCA(t, "cluster")
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	early := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }
	for name, c := range map[string]struct {
		settings Settings
		reason   string
	}{
		"another authority": {newCA(t, "elsewhere").issue(nil, "decode.kv"), `does not vouch for: it is of "CN=elsewhere"`},
		"same name":         {newCA(t, "cluster").issue(nil, "decode.kv"), "vouch"},
		"expired":           {ca.issue(expired, "decode.kv"), "not now by this machine's clock"},
		"not yet valid":     {ca.issue(early, "decode.kv"), "not now by this machine's clock"},
		"a cluster secret":  {Settings{SecretFile: secretFile(t, oldSecret)}, "KVFERRY_SECRET_FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			good, bad := newEngine(t, ca.issue(nil, "prefill.kv")), newEngine(t, c.settings)
			// The side that sees the other one's certificate first is the client.
			server, client := meet(t, overTCP, bad.Policy, good.Policy, "")
			assert.ErrorContains(t, client.err, c.reason)
			assert.ErrorContains(t, server.err, "refuses this engine's certificate")
			server, client = meet(t, overTCP, good.Policy, bad.Policy, "")
			assert.Error(t, server.err)
			assert.Error(t, client.err)
			if c.settings.CAFile == ca.file("ca.pem") {
				assert.ErrorContains(t, server.err, c.reason)
				assert.ErrorContains(t, client.err, "refuses this engine's certificate")
				assert.Equal(t, 1, bad.log.FilterMessageSnippet("will refuse this engine's certificate").Len())
			}
		})
	}
}

func TestTheNamesOfPeersSayWhoMayConnect(t *testing.T) {
	ca := newCA(t, "cluster")
	settings := ca.issue(nil, "spiffe://cluster/ns/kv/sa/prefill")
	settings.Peers = "spiffe://cluster/ns/*/sa/decode, *.decode.kv, 10.0.0.7"
	server := newEngine(t, settings)
	for _, name := range []string{"spiffe://cluster/ns/blue/sa/decode", "rank-3.decode.kv", "10.0.0.7"} {
		requireMeet(t, overPipe, server, newEngine(t, ca.issue(nil, name)))
	}
	for _, name := range []string{"spiffe://cluster/ns/blue/sa/router", "decode.kv", "10.0.0.8"} {
		stranger := newEngine(t, ca.issue(nil, name))
		atServer, atClient := meet(t, overTCP, server.Policy, stranger.Policy, "")
		assert.ErrorContains(t, atServer.err, "presents a certificate of "+name+", and KVFERRY_TLS_PEERS names none of these")
		assert.ErrorContains(t, atClient.err, "KVFERRY_TLS_PEERS")
		// They bind the engines that are connected to, too.
		_, atClient = meet(t, overTCP, stranger.Policy, server.Policy, "")
		assert.ErrorContains(t, atClient.err, "KVFERRY_TLS_PEERS names none of these")
	}
}

func TestACommonNameNamesNobody(t *testing.T) {
	ca := newCA(t, "cluster")
	settings := ca.issue(nil, "prefill.kv")
	settings.Peers = "decode.kv"
	client := newEngine(t, ca.issue(func(c *x509.Certificate) { c.Subject.CommonName = "decode.kv" }))
	atServer, _ := meet(t, overPipe, newEngine(t, settings).Policy, client.Policy, "")
	assert.ErrorContains(t, atServer.err, "no DNS name, IP address or URI")
}

func TestACertificateForOneSideOnlyStopsTheStart(t *testing.T) {
	ca := newCA(t, "cluster")
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		s := ca.issue(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{use} }, "decode.kv")
		_, err := New(s, randomIdentity(), zap.NewNop())
		assert.ErrorContains(t, err, "KVFERRY_TLS_CERT: "+s.CertFile+" must be for servers and for clients")
	}
}

func TestFilesThatHoldNoCertificateStopTheStartAndAreNamed(t *testing.T) {
	ca := newCA(t, "cluster")
	good, other := ca.issue(nil, "decode.kv"), ca.issue(nil, "decode.kv")
	empty := ca.file("empty")
	write(t, empty, "")
	torn := ca.file("torn")
	whole, err := os.ReadFile(ca.file("ca.pem"))
	require.NoError(t, err)
	write(t, torn, string(whole)+pemOf("CERTIFICATE", ca.certificate.Raw[:100]))
	for setting, change := range map[string]func(*Settings){
		"KVFERRY_TLS_CERT": func(s *Settings) { s.CertFile = empty },
		"KVFERRY_TLS_KEY":  func(s *Settings) { s.KeyFile = other.KeyFile },
		"KVFERRY_TLS_CA":   func(s *Settings) { s.CAFile = empty },
		"KVFERRY_TLS_CA: ": func(s *Settings) { s.CAFile = torn },
		"KVFERRY_TLS_CA:":  func(s *Settings) { s.CAFile = "/no/such/file" },
	} {
		s := good
		change(&s)
		_, err := New(s, randomIdentity(), zap.NewNop())
		assert.ErrorContains(t, err, setting)
	}
}

func TestAnAuthorityIsReplacedWithoutStopping(t *testing.T) {
	old, next := newCA(t, "cluster 2026"), newCA(t, "cluster 2027")
	both := pemOf("CERTIFICATE", old.certificate.Raw) + pemOf("CERTIFICATE", next.certificate.Raw)
	server, client := old.issue(nil, "prefill.kv"), old.issue(nil, "decode.kv")
	engines := []engine{newEngine(t, server), newEngine(t, client)}
	requireMeet(t, overPipe, engines[0], engines[1])
	write(t, old.file("ca.pem"), both) // both engines read it
	for i, s := range []Settings{server, client} {
		fresh := next.issue(nil, "later.kv")
		for from, to := range map[string]string{fresh.KeyFile: s.KeyFile, fresh.CertFile: s.CertFile} {
			content, err := os.ReadFile(from)
			require.NoError(t, err)
			write(t, to, string(content))
		}
		atServer, atClient := requireMeet(t, overPipe, engines[0], engines[1])
		assert.Equal(t, []string{"later.kv"}, atClient.Names)
		assert.Equal(t, []string{[]string{"decode.kv", "later.kv"}[i]}, atServer.Names)
	}
	write(t, old.file("ca.pem"), pemOf("CERTIFICATE", next.certificate.Raw))
	requireMeet(t, overPipe, engines[0], engines[1])
	atServer, _ := meet(t, overPipe, engines[0].Policy, newEngine(t, old.issue(nil, "late.kv")).Policy, "")
	assert.Error(t, atServer.err)
}

func TestKeysOfEveryKindAuthenticateAndSign(t *testing.T) {
	ca := newCA(t, "cluster")
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	verifier := newEngine(t, ca.issue(nil, "prefill.kv"))
	for _, key := range []crypto.Signer{newKey(t), edwards, large} {
		e := newEngine(t, ca.issueFor(key, nil, "decode.kv"))
		requireMeet(t, overPipe, verifier, e)
		signature, err := e.Sign(place, []byte("payload"))
		require.NoError(t, err)
		peer, err := verifier.Verify(place, []byte("payload"), signature, e.identity)
		require.NoError(t, err)
		assert.Equal(t, []string{"decode.kv"}, peer.Names)
		_, err = verifier.Verify(place, []byte("payloaD"), signature, e.identity)
		assert.ErrorIs(t, err, errForeign)
		_, err = verifier.Verify(place, []byte("payload"), signature, verifier.identity)
		assert.ErrorIs(t, err, errForeign)
	}
}
