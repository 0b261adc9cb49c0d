package core

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// described finds a setting by the name that it has in the environment.
func described(t *testing.T, d Described, name string) DescribedSetting {
	t.Helper()
	for _, s := range d.Settings {
		if s.Name == name {
			return s
		}
	}
	require.Fail(t, "the setting is not described", name)
	return DescribedSetting{}
}

func TestEachSettingIsDescribedWithItsValueAndWhereThatComesFrom(t *testing.T) {
	d := Describe(map[string]string{"MC_RETRY_CNT": "3", "MC_TCP_MAX_CONNECTIONS_PER_PEER": "2", "PATH": "/bin"})
	require.Equal(t, DescribedSetting{"MC_RETRY_CNT", "3", "9", FromEnvironment, ""}, described(t, d, "MC_RETRY_CNT"))
	require.Equal(t, "2", described(t, d, "MC_TCP_MAX_CONNECTIONS_PER_PEER").Value, "an older spelling")
	require.Equal(t, DescribedSetting{"MC_SLICE_TIMEOUT", "0", "0", FromDefault, ""}, described(t, d, "MC_SLICE_TIMEOUT"))
	require.Empty(t, d.Unknown)
	variables := 0
	for _, s := range settings {
		variables += len(s.variables)
	}
	require.Len(t, d.Settings, variables)
}

func TestAValueThatIsNotAcceptedIsDescribedAsNotInEffect(t *testing.T) {
	d := Describe(map[string]string{"MC_RETRY_CNT": "many", "MC_MIN_RPC_PORT": "40000"})
	require.Equal(t, "9", described(t, d, "MC_RETRY_CNT").Value)
	require.NotEmpty(t, described(t, d, "MC_RETRY_CNT").Problem)
	require.Equal(t, "15000", described(t, d, "MC_MIN_RPC_PORT").Value)
	require.NotEmpty(t, described(t, d, "MC_MIN_RPC_PORT").Problem)
	require.Empty(t, described(t, d, "MC_MAX_RPC_PORT").Problem, "it is not in the environment")
}

func TestASecretIsNotInADescription(t *testing.T) {
	const secret = "hunter2-and-more"
	environment := map[string]string{}
	for _, s := range settings {
		if s.kind.secret {
			for _, v := range s.variables {
				environment[v.name] = secret
			}
		}
	}
	require.NotEmpty(t, environment)
	d := Describe(environment)
	text, err := json.Marshal(d)
	require.NoError(t, err)
	require.NotContains(t, string(text), secret)
	for name := range environment {
		require.Equal(t, "***", described(t, d, name).Value)
		require.Equal(t, FromEnvironment, described(t, d, name).Source)
	}
}

func TestUnknownNamesAreDescribedWithTheSettingThatWasProbablyMeant(t *testing.T) {
	d := Describe(map[string]string{"KVFERRY_LISTN": "x", "KVFERRY_NOTHING_LIKE_THAT_AT_ALL": "x", "MC_RETRY_COUNT": "1", "MC_GID_INDEX": "3", "HOME": "/"})
	require.Equal(t, []UnknownSetting{
		{"KVFERRY_LISTN", "KVFERRY_LISTEN", true}, {"KVFERRY_NOTHING_LIKE_THAT_AT_ALL", "", true},
		{"MC_GID_INDEX", "", false}, {"MC_RETRY_COUNT", "MC_RETRY_CNT", false},
	}, d.Unknown)
}
