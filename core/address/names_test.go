package address

import (
	"strings"
	"testing"

	"kvferry/core/status"

	"github.com/stretchr/testify/require"
)

func TestNamesHaveWhatTheyList(t *testing.T) {
	for list, c := range map[string]struct{ has, hasNot string }{
		"10.0.0.2:15003":        {"10.0.0.2:15003 [::ffff:10.0.0.2]:15003 10.0.0.2:15003:npu_3", "10.0.0.2:15004 10.0.0.3:15003 node:15003"},
		"prefill-0.kv:15003":    {"prefill-0.kv:15003 PREFILL-0.kv.:15003", "prefill-0:15003 prefill-0.kv:15004 prefill-1.kv:15003"},
		"node7":                 {"node7:1 node7:65535", "node8:1 10.0.0.2:1"},
		"[fe80::1%eth0]:15003":  {"[fe80::1%eth7]:15003 fe80::1:15003", "[fe80::2%eth0]:15003"},
		"127.0.0.1:15003":       {"localhost:15003 0.0.0.0:15003 127.0.0.1:15003", "127.0.0.2:15003 localhost:1"},
		"a:1, 203.0.113.7:9000": {"a:1 203.0.113.7:9000", "a:9000"},
		"*":                     {"anything:1 10.0.0.1:2", ""},
		"":                      {"", "a:1"},
	} {
		names, err := ParseNames(list)
		require.NoError(t, err, list)
		for want, asked := range map[bool]string{true: c.has, false: c.hasNot} {
			for _, text := range strings.Fields(asked) {
				name, err := Parse(text, 12001)
				require.NoError(t, err)
				require.Equal(t, want, names.Has(name), "%q in %q", text, list)
			}
		}
	}
	require.False(t, Names{"0.0.0.0:1", "[::]:1"}.Has(Name{Host: "0.0.0.0", Port: 1}))
	require.False(t, Names{"", "a b", "[::"}.Has(Name{Host: "a", Port: 1}), "what a peer says may be anything")
}

func TestAListOfNamesThatCannotBeReadIsAnError(t *testing.T) {
	for _, list := range []string{",", "a b", "a:70000", "*:1x", "[::", strings.Repeat("a,", 64) + "a"} {
		_, err := ParseNames(list)
		require.Error(t, err, list)
		require.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
	}
}
