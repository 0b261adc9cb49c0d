package security

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

func TestASecretFileHasOneSecretOnEachLine(t *testing.T) {
	for content, want := range map[string][]string{
		oldSecret:                               {oldSecret},
		oldSecret + "\n":                        {oldSecret},
		oldSecret + "\r\n" + newSecret + "\r\n": {oldSecret, newSecret},
		"# since May\n\n  " + newSecret + "\t\n#old\n": {newSecret},
		newSecret + "\n" + newSecret + "\n":            {newSecret},
	} {
		secrets, err := parseSecrets([]byte(content))
		require.NoError(t, err, content)
		assert.Equal(t, want, secrets)
	}
}

func TestSecretsThatCanBeGuessedAreRefusedWithTheWayToMakeOne(t *testing.T) {
	for content, reason := range map[string]string{
		"":                                    "no secret",
		"\n# nothing\n":                       "no secret",
		"hunter2":                             "line 1 has a secret of 7 characters, and 32 are the least",
		oldSecret + "\nhunter2\n":             "line 2 has a secret of 7 characters",
		oldSecret[:31]:                        "31 characters",
		strings.Repeat("a", 64):               "1 different characters",
		strings.Repeat("secret", 20):          "5 different characters",
		oldSecret[:40] + " " + oldSecret[41:]: "line 1 has a character that is not printable",
		string([]byte{0xef, 0xbb, 0xbf}) + oldSecret: "not printable",
		oldSecret + "\x00":                           "not printable",
	} {
		_, err := parseSecrets([]byte(content))
		require.Error(t, err, content)
		assert.Contains(t, err.Error(), reason)
		assert.Contains(t, err.Error(), "openssl rand -hex 32")
		assert.NotContains(t, err.Error(), "hunter2")
	}
	_, err := parseSecrets([]byte(strings.Repeat(oldSecret, 17)))
	assert.ErrorContains(t, err, "1024 are the most")
	var many []string
	for range maxSecrets + 1 {
		many = append(many, rand.Text()+rand.Text())
	}
	_, err = parseSecrets([]byte(strings.Join(many, "\n")))
	assert.ErrorContains(t, err, "9 secrets")
}

func TestRandomSecretsAreTakenHoweverTheyAreWritten(t *testing.T) {
	for range 2000 {
		var b [32]byte
		_, _ = rand.Read(b[:])
		written := hex.EncodeToString(b[:]) + "\n" + base64.StdEncoding.EncodeToString(b[:]) + "\n" + hex.EncodeToString(b[:16]) + "\n" + rand.Text() + rand.Text()
		secrets, err := parseSecrets([]byte(written))
		require.NoError(t, err, written)
		assert.Len(t, secrets, 4)
	}
}

func FuzzParseSecrets(f *testing.F) {
	f.Add([]byte(oldSecret + "\n" + newSecret))
	f.Add([]byte("# comment\r\n\r\n \t" + otherSecret))
	f.Add([]byte("hunter2 hunter2 hunter2"))
	f.Fuzz(func(t *testing.T, content []byte) {
		secrets, err := parseSecrets(content)
		if err != nil {
			for line := range strings.Lines(string(content)) {
				if secret := strings.Trim(line, " \t\r\n"); len(secret) >= minSecret {
					assert.NotContains(t, err.Error(), secret)
				}
			}
			return
		}
		assert.NotEmpty(t, secrets)
		assert.LessOrEqual(t, len(secrets), maxSecrets)
		for _, secret := range secrets {
			assert.NoError(t, checkSecret(secret))
			assert.NotContains(t, secret, "\n")
			assert.Contains(t, string(content), secret)
		}
		again, err := parseSecrets([]byte(strings.Join(secrets, "\n")))
		assert.NoError(t, err)
		assert.Equal(t, secrets, again)
	})
}

// knownAuthority is the public key of the authority of oldSecret, as OpenSSL derives it.
const knownAuthority = "86ea90a11c60c6a3764f30922e0e3da3b779735d383da0f36ae120c9c2540c4f"

func TestASecretGivesTheSameAuthorityEverywhere(t *testing.T) {
	a, err := authorityOf(oldSecret)
	require.NoError(t, err)
	b, err := authorityOf(oldSecret)
	require.NoError(t, err)
	assert.Equal(t, a.certificate.Raw, b.certificate.Raw)
	// What engines of other versions derive, too: with another key they would refuse each other.
	assert.Equal(t, knownAuthority, hex.EncodeToString(a.certificate.PublicKey.(ed25519.PublicKey)))
	other, err := authorityOf(oldSecret[:63] + "4")
	require.NoError(t, err)
	assert.NotEqual(t, a.id, other.id)
	assert.NotEqual(t, a.key, other.key)
}

func TestAnEnginesCertificateVouchesForNobody(t *testing.T) {
	e := withSecrets(t, oldSecret)
	leaf, err := x509.ParseCertificate(e.files.Current().own().Certificate[0])
	require.NoError(t, err)
	assert.False(t, leaf.IsCA)
	assert.Zero(t, leaf.KeyUsage&x509.KeyUsageCertSign)
	assert.Empty(t, leaf.DNSNames)
	assert.Equal(t, "kvferry:engine:"+e.identity, leaf.URIs[0].String())
}

func TestEachEngineHasAKeyOfItsOwn(t *testing.T) {
	path := secretFile(t, oldSecret)
	a, b := newEngine(t, Settings{SecretFile: path}), newEngine(t, Settings{SecretFile: path})
	assert.NotEqual(t, a.files.Current().own().PrivateKey, b.files.Current().own().PrivateKey)
}

// A peer chooses what it sends: only a certificate of the key that it has proven to have may be believed.
func TestACertificateOfAnotherKeyIsNotBelieved(t *testing.T) {
	trusted, stranger := withSecrets(t, oldSecret), withSecrets(t, otherSecret)
	var stolen, own []*x509.Certificate
	for _, list := range []struct {
		from engine
		to   *[]*x509.Certificate
	}{{trusted, &stolen}, {stranger, &own}} {
		c, err := x509.ParseCertificate(list.from.files.Current().own().Certificate[0])
		require.NoError(t, err)
		*list.to = append(*list.to, c)
	}
	_, err := trusted.files.Current().check(append(own, stolen...), x509.ExtKeyUsageServerAuth)
	assert.ErrorContains(t, err, "another cluster secret")
	peer, err := trusted.files.Current().check(append(stolen, own...), x509.ExtKeyUsageServerAuth)
	require.NoError(t, err)
	assert.Equal(t, trusted.identity, peer.Identity)
}

// An engine of the cluster must not be able to make certificates that are still valid when its secret is replaced.
func TestNobodyButTheSecretVouchesForAnEngine(t *testing.T) {
	a, err := authorityOf(oldSecret)
	require.NoError(t, err)
	public, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	middle := authority{key: key}
	der, err := a.vouch(randomIdentity(), public)
	require.NoError(t, err)
	middle.certificate, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	victim, _, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	forged, err := middle.vouch(randomIdentity(), victim)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(forged)
	require.NoError(t, err)
	e := withSecrets(t, oldSecret)
	_, err = e.files.Current().check([]*x509.Certificate{leaf, middle.certificate}, x509.ExtKeyUsageServerAuth)
	assert.Error(t, err)
}

func TestASecretFileThatIsNoGoodStopsTheStartAndNamesIt(t *testing.T) {
	short := secretFile(t, "hunter2")
	folder := t.TempDir()
	for path, reason := range map[string]string{
		short: "openssl rand -hex 32", folder: "not a regular file", folder + "/missing": "no such file",
	} {
		_, err := New(Settings{SecretFile: path}, randomIdentity(), zap.NewNop())
		require.Error(t, err)
		assert.Contains(t, err.Error(), "KVFERRY_SECRET_FILE")
		assert.Contains(t, err.Error(), path)
		assert.Contains(t, err.Error(), reason)
	}
}
