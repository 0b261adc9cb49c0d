package core_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/security"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// startNamed starts an engine in P2P mode, and returns the warnings that it logs. configure may be nil.
func startNamed(t *testing.T, name string, configure func(*core.Config)) (*core.Engine, *observer.ObservedLogs) {
	t.Helper()
	observed, lines := observer.New(zap.WarnLevel)
	o := core.Options{Name: name, Metadata: metadata.P2P, Config: core.DefaultConfig(), Log: zap.New(observed)}
	if configure != nil {
		configure(&o.Config)
	}
	e, err := core.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e, lines
}

func TestANameThatNoPeerCanConnectToIsToldWhenTheEngineStarts(t *testing.T) {
	for name, reason := range map[string]string{
		"192.0.2.1": "no address of this machine", "0.0.0.0": "the address of no machine", "[::]:7": "the address of no machine", "no-such-host.invalid": "does not resolve",
	} {
		_, lines := startNamed(t, name, nil)
		told := lines.FilterMessageSnippet("peers cannot connect to the address").All()
		require.Len(t, told, 1, name)
		assert.Contains(t, told[0].ContextMap()["reason"], reason)
		assert.Equal(t, 1, lines.FilterMessageSnippet("listens on every address").Len(), name)
	}
	for _, name := range []string{"127.0.0.1", "localhost", "127.0.0.3:7"} {
		_, lines := startNamed(t, name, nil)
		assert.Zero(t, lines.Len(), name)
	}
}

func TestWhatAnOperatorHasDecidedIsNotWarnedOf(t *testing.T) {
	_, lines := startNamed(t, "192.0.2.1", func(c *core.Config) { c.Listen = "127.0.0.1" })
	assert.Zero(t, lines.Len(), "connections are forwarded")
	_, lines = startNamed(t, "192.0.2.1", func(c *core.Config) { c.Listen = "::" })
	assert.Zero(t, lines.Len(), "connections are forwarded")
	_, lines = startNamed(t, "192.0.2.1", func(c *core.Config) { c.Allow = "192.0.2.0/24" })
	assert.Zero(t, lines.FilterMessageSnippet("every address").Len())
	_, lines = startNamed(t, "0.0.0.0", func(c *core.Config) { c.Listen = "127.0.0.1" })
	assert.Equal(t, 1, lines.FilterMessageSnippet("peers cannot connect").Len(), "peers get to know that address")
}

func TestAnEngineListensWhereItIsToldAndNotOnItsName(t *testing.T) {
	e, _ := startNamed(t, "127.0.0.1", func(c *core.Config) { c.Listen = "127.0.0.2, 127.0.0.3" })
	assert.Equal(t, "127.0.0.2,127.0.0.3", e.ListenHost())
	assert.True(t, strings.HasPrefix(e.Address(), "127.0.0.1:"), "peers connect by the name")
	data, err := e.Listen(e.Config().MinPort, e.Config().MaxPort, 0)
	require.NoError(t, err)
	defer data.Close()
	_, port, err := net.SplitHostPort(e.Address())
	require.NoError(t, err)
	client := metadata.Client{}
	for host, want := range map[string]error{"127.0.0.1": unix.ECONNREFUSED, "127.0.0.2": nil, "127.0.0.3": nil} {
		assert.ErrorIs(t, client.Probe(context.Background(), net.JoinHostPort(host, port)), want, host)
	}
}

func TestAnEngineAnswersOnlyTheNetworksThatMayConnect(t *testing.T) {
	open, _ := startNamed(t, "127.0.0.1", func(c *core.Config) { c.Allow = "127.0.0.0/8" })
	closed, lines := startNamed(t, "127.0.0.1", func(c *core.Config) { c.Allow = "10.0.0.0/8,::1" })
	client := metadata.Client{}
	require.NoError(t, client.Probe(context.Background(), open.Address()))
	require.Error(t, client.Probe(context.Background(), closed.Address()))
	var refused []observer.LoggedEntry
	eventually(t, func() bool {
		refused = lines.FilterMessageSnippet("KVFERRY_ALLOW does not have its address").All()
		return len(refused) > 0
	})
	assert.Contains(t, refused[0].ContextMap()["peer"], "127.0.0.1:")
	assert.EqualValues(t, len(refused), closed.Stats().Security.NotAllowed)
	assert.Zero(t, open.Stats().Security.NotAllowed)
}

func TestAnEngineThatRequiresASecretMayListenOnEveryAddress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte("0d8c7a6e5b4f3a2918070615243342518091a2b3c4d5e6f70819203142536475\n"), 0o600))
	e, lines := startNamed(t, "192.0.2.1", func(c *core.Config) { c.Security.SecretFile = path })
	assert.Equal(t, security.Require, e.Security().Mode())
	assert.Zero(t, lines.FilterMessageSnippet("every address").Len())
	_, lines = startNamed(t, "192.0.2.1", func(c *core.Config) { c.Security = security.Settings{SecretFile: path, Mode: "prefer"} })
	assert.Equal(t, 1, lines.FilterMessageSnippet("every address").Len())
}

func TestAnEngineDoesNotStartWithALimitThatCannotBeUnderstood(t *testing.T) {
	for setting, configure := range map[string]func(*core.Config){
		"KVFERRY_ALLOW: ":                 func(c *core.Config) { c.Allow = "10.0.0.0/33" },
		"KVFERRY_ALLOW: \"all\"":          func(c *core.Config) { c.Allow = "all" },
		"KVFERRY_LISTEN: \"eth0\"":        func(c *core.Config) { c.Listen = "eth0" },
		"KVFERRY_SECURITY=require needs":  func(c *core.Config) { c.Security.Mode = "require" },
		"KVFERRY_SECURITY is \"requir\"":  func(c *core.Config) { c.Security.Mode = "requir" },
		"KVFERRY_SECRET_FILE: open /no":   func(c *core.Config) { c.Security.SecretFile = "/no/such/file" },
		"no interface \"nosuch0\"":        func(c *core.Config) { c.Listen = "fe80::1%nosuch0" },
		"without its interface":           func(c *core.Config) { c.Listen = "fe80::1" },
		"KVFERRY_LISTEN: cannot listen o": func(c *core.Config) { c.Listen = "192.0.2.1" },
	} {
		o := core.Options{Name: "127.0.0.1", Metadata: metadata.P2P, Config: core.DefaultConfig(), Log: zap.NewNop()}
		configure(&o.Config)
		_, err := core.New(o)
		require.ErrorContains(t, err, setting)
		assert.Contains(t, []status.Code{status.InvalidArgument, status.Socket}, status.Of(err, status.OK))
	}
}
