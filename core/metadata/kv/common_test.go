package kv_test

import (
	"testing"

	"kvferry/core/metadata/kv"
	"kvferry/core/metadata/kv/kvtest"
	"kvferry/core/status"

	"github.com/stretchr/testify/require"
)

func TestWhatIsNoAddressOfAStoreIsRefused(t *testing.T) {
	for _, text := range []string{"", ":6379", "a:", "a/b", "[::1", "::1x", "a b", "a%20b", "#"} {
		_, err := kv.HostPort(text, "6379")
		require.Equal(t, status.InvalidArgument, status.Of(err, status.OK), text)
	}
	_, err := kv.HostPort("me:secret@a:6379", "6379")
	require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
	require.NotContains(t, err.Error(), "secret")
	for text, want := range map[string]string{
		"a": "a:6379", "a:1": "a:1", "10.0.0.1": "10.0.0.1:6379", "[::1]": "[::1]:6379", "[::1]:1": "[::1]:1", "::1": "[::1]:6379",
		"fd00::2:16379": "[fd00::2]:16379",
	} {
		got, err := kv.HostPort(text, "6379")
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestFilesForTLSThatAreNoneAreNamed(t *testing.T) {
	certificates := kvtest.NewCertificates(t)
	for variable, o := range map[string]kv.Connection{
		"KVFERRY_METADATA_CA":   {CA: "/no/such/file"},
		"KVFERRY_METADATA_CERT": {Cert: certificates.Cert},
		"KVFERRY_METADATA_KEY":  {Cert: certificates.Cert, Key: certificates.CA},
		"has no certificate":    {CA: certificates.Key},
	} {
		_, err := o.TLS()
		require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
		require.ErrorContains(t, err, variable)
	}
}
