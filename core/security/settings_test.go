package security

import (
	"testing"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

func TestSecurityIsOffOnlyWhereNothingIsConfiguredOrItIsSaid(t *testing.T) {
	certificate := Settings{CertFile: "c", KeyFile: "k", CAFile: "a"}
	for _, c := range []struct {
		settings Settings
		mode     string
		want     Mode
	}{
		{Settings{}, "", Off},
		{Settings{}, "off", Off},
		{Settings{SecretFile: "s"}, "", Require},
		{Settings{SecretFile: "s"}, "prefer", Prefer},
		{Settings{SecretFile: "s"}, "require", Require},
		{Settings{SecretFile: "s"}, "off", Off},
		{certificate, "", Require},
		{certificate, "prefer", Prefer},
	} {
		c.settings.Mode = c.mode
		mode, err := c.settings.mode()
		require.NoError(t, err, c)
		assert.Equal(t, c.want, mode, c)
	}
}

func TestContradictorySettingsAreErrorsThatNameThem(t *testing.T) {
	for _, c := range []struct {
		settings Settings
		names    []string
	}{
		{Settings{Mode: "require"}, []string{"KVFERRY_SECURITY=require", "KVFERRY_SECRET_FILE", "KVFERRY_TLS_CERT"}},
		{Settings{Mode: "prefer"}, []string{"KVFERRY_SECURITY=prefer", "KVFERRY_SECRET_FILE", "KVFERRY_TLS_CERT"}},
		{Settings{Mode: "Require"}, []string{"KVFERRY_SECURITY", `"Require"`, "off, prefer or require"}},
		{Settings{Mode: "requir", SecretFile: "s"}, []string{"KVFERRY_SECURITY", `"requir"`}},
		{Settings{SecretFile: "s", CAFile: "a"}, []string{"KVFERRY_SECRET_FILE", "KVFERRY_TLS_CA"}},
		{Settings{SecretFile: "s", CertFile: "c", KeyFile: "k", CAFile: "a"}, []string{"KVFERRY_SECRET_FILE", "KVFERRY_TLS_CERT"}},
		{Settings{Peers: "a.b"}, []string{"KVFERRY_TLS_PEERS", "KVFERRY_TLS_CERT"}},
		{Settings{Peers: "a.b", SecretFile: "s"}, []string{"KVFERRY_TLS_PEERS", "KVFERRY_TLS_CERT"}},
		{Settings{CertFile: "c"}, []string{"KVFERRY_TLS_CERT is set without KVFERRY_TLS_KEY"}},
		{Settings{CertFile: "c", KeyFile: "k"}, []string{"KVFERRY_TLS_CERT is set without KVFERRY_TLS_CA"}},
		{Settings{KeyFile: "k", CAFile: "a"}, []string{"KVFERRY_TLS_KEY is set without KVFERRY_TLS_CERT"}},
		{Settings{CAFile: "a"}, []string{"KVFERRY_TLS_CA is set without KVFERRY_TLS_CERT"}},
	} {
		_, err := New(c.settings, randomIdentity(), zap.NewNop())
		require.Error(t, err, c)
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK), err)
		for _, name := range c.names {
			assert.Contains(t, err.Error(), name)
		}
	}
}

func TestContradictionsAreErrorsAlsoWhereSecurityIsOff(t *testing.T) {
	_, err := New(Settings{Mode: "off", SecretFile: "s", CertFile: "c"}, randomIdentity(), zap.NewNop())
	assert.Error(t, err)
}

func TestAPolicyThatIsOffLetsNobodyThrough(t *testing.T) {
	off := newEngine(t, Settings{})
	assert.Equal(t, Off, off.Mode())
	on := withSecrets(t, oldSecret)
	for _, through := range networks {
		server, client := meet(t, through, off.Policy, on.Policy, "")
		assert.Error(t, server.err)
		assert.Error(t, client.err)
		server, client = meet(t, through, on.Policy, off.Policy, "")
		assert.Error(t, server.err)
		assert.Error(t, client.err)
	}
	_, err := off.Sign(place, []byte("payload"))
	assert.Error(t, err)
	_, err = off.Verify(place, []byte("payload"), []byte("signature"), randomIdentity())
	assert.Error(t, err)
}

func TestASecretThatIsSwitchedOffIsSaid(t *testing.T) {
	off := newEngine(t, Settings{Mode: "off", SecretFile: "/no/such/file"})
	assert.Equal(t, 1, off.log.FilterMessageSnippet("KVFERRY_SECURITY=off").Len())
}

func TestIdentitiesOfAnotherFormAreRefused(t *testing.T) {
	for _, identity := range []string{"", "abc", randomIdentity() + "0", "0123456789ABCDEF0123456789ABCDEF"} {
		_, err := New(Settings{}, identity, zap.NewNop())
		assert.Error(t, err)
	}
}
