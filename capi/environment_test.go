package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheEnvironmentIsReadAsGetenvReadsIt(t *testing.T) {
	env := parseEnvironment("A=1\x00EMPTY=\x00A=2\x00no variable\x00EQUALS=a=b\x00")
	require.Equal(t, environment{"A": "1", "EMPTY": "", "EQUALS": "a=b"}, env)
	_, ok := env.lookup("B")
	require.False(t, ok)
	value, ok := env.lookup("EMPTY")
	require.True(t, ok)
	require.Empty(t, value)
	require.Empty(t, parseEnvironment(""))
}

func TestTheCopyOfTheEnvironmentHoldsAllVariables(t *testing.T) {
	env, err := readEnvironment()
	require.NoError(t, err)
	for name, value := range env {
		now, ok := getenv(name)
		require.True(t, ok, name)
		require.Equal(t, now, value, name)
	}
	path, ok := getenv("PATH")
	require.True(t, ok)
	require.Equal(t, path, env["PATH"])
}

func TestSettingsOfOneEngineTakePrecedenceAndAreChecked(t *testing.T) {
	env := environment{"KVFERRY_MAX_SESSIONS": "7", "MC_RETRY_CNT": "x"}
	require.NoError(t, env.add("KVFERRY_MAX_SESSIONS=9\x00"))
	require.NoError(t, env.add(""))
	require.Equal(t, environment{"KVFERRY_MAX_SESSIONS": "9", "MC_RETRY_CNT": "x"}, env)
	require.ErrorContains(t, env.add("KVFERRY_MAX_SESSION=9\x00"), "no setting")
	require.ErrorContains(t, env.add("KVFERRY_MAX_SESSIONS=many\x00"), "KVFERRY_MAX_SESSIONS")
	for _, text := range []string{"KVFERRY_MAX_SESSIONS\x00", "MC_RETRY_CNT=3\x00KVFERRY_MAX_SESSIONS", "\x00", "MC_RETRY_CNT=3\x00\x00"} {
		require.ErrorContains(t, env.add(text), "a setting is NAME=VALUE", "%q", text)
	}
}
