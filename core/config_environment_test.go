package core

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestSettingsThatDifferFromTheirDefaultsAreListedWithoutSecrets(t *testing.T) {
	assert.Empty(t, ChangedSettings(environment(nil)))
	assert.Equal(t,
		[]string{
			"MC_LOG_LEVEL=INFO", "MC_FORCE_TCP=", "MC_MIN_PRC_PORT=20000", "MC_MAX_RPC_PORT=20010",
			"MC_TCP_LANES_PER_PEER=2", "MC_METADATA_HTTP_TOKEN=***",
		},
		ChangedSettings(environment(map[string]string{
			"MC_LOG_LEVEL": "INFO", "MC_FORCE_TCP": "", "MC_MIN_PRC_PORT": "20000", "MC_MAX_RPC_PORT": "20010",
			"MC_TCP_LANES_PER_PEER": "2", "MC_METADATA_HTTP_TOKEN": "swordfish",
			"MC_RETRY_CNT": "9", "MC_TCP_SLICE_SIZE": "no number", "PATH": "/bin",
		})))
}

func TestAVariableThatLooksLikeASettingAndIsNoneIsNamedWithTheNearest(t *testing.T) {
	for name, says := range map[string]string{
		"KVFERRY_MAX_SESSION":             ": did you mean KVFERRY_MAX_SESSIONS?",
		"KVFERRY_SAMEHOST":                ": did you mean KVFERRY_SAME_HOST?",
		"KVFERRY_same_host":               "",
		"KVFERRY_LOG_LEVEL":               ": did you mean MC_LOG_LEVEL?",
		"KVFERRY_LIBARY":                  ": did you mean KVFERRY_LIBRARY?",
		"KVFERRY_STAGING_BLOCK_SIZE_":     ": did you mean KVFERRY_STAGING_BLOCK_SIZE?",
		"KVFERRY_X":                       "",
		"KVFERRY_":                        "",
		"KVFERRY_SOMETHING_ELSE_ENTIRELY": "",
	} {
		assert.Equal(t, name+" is no setting of kvferry and has no effect"+says, UnknownVariable(name))
	}
}

func TestSettingsAndVariablesOfOthersAreNotTakenForMistakes(t *testing.T) {
	for _, s := range settings {
		for _, v := range s.variables {
			assert.Empty(t, UnknownVariable(v.name))
			assert.Empty(t, UnknownVariable(v.older))
		}
	}
	for _, name := range []string{
		"", "PATH", "MC_SOMETHING", "kvferry_max_session", "KVFERRY", "KVFERRY_LIBRARY", "KVFERRY_SIM_COST", "KVFERRY_REQUIRE_ALL",
		"KVFERRY_SERVICE_HOST", "KVFERRY_PORT_8080_TCP_ADDR",
	} {
		assert.Empty(t, UnknownVariable(name), name)
	}
}
