package address

import (
	"strings"
	"testing"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseTakesEveryFormOfAName(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Name
	}{
		{"node1", Name{"node1", 12001, NoDevice}},
		{"node1:15003", Name{"node1", 15003, NoDevice}},
		{"node1:0", Name{"node1", 0, NoDevice}},
		{"10.0.0.7", Name{"10.0.0.7", 12001, NoDevice}},
		{"10.0.0.7:65535", Name{"10.0.0.7", 65535, NoDevice}},
		{"10.0.0.7:15003:npu_3", Name{"10.0.0.7", 15003, 3}},
		{"my_pod-0.svc.cluster.local:1", Name{"my_pod-0.svc.cluster.local", 1, NoDevice}},
		{"::1", Name{"::1", 12001, NoDevice}},
		{"2001:db8::5", Name{"2001:db8::5", 12001, NoDevice}},
		{"[2001:db8::5]", Name{"2001:db8::5", 12001, NoDevice}},
		{"[2001:db8::5]:15003", Name{"2001:db8::5", 15003, NoDevice}},
		{"[2001:db8::5]:15003:npu_12", Name{"2001:db8::5", 15003, 12}},
		{"fe80::1%eth0", Name{"fe80::1%eth0", 12001, NoDevice}},
		{"fe80::1%eth0:15003", Name{"fe80::1%eth0", 15003, NoDevice}},
		{"fe80::1%eth0:15003:npu_0", Name{"fe80::1%eth0", 15003, 0}},
		{"[fe80::1%eth0]:15003", Name{"fe80::1%eth0", 15003, NoDevice}},
		{"::ffff:10.0.0.7", Name{"::ffff:10.0.0.7", 12001, NoDevice}},
		{"::ffff:10.0.0.7:15003", Name{"::ffff:10.0.0.7", 15003, NoDevice}},
		{"fd00::2:15858", Name{"fd00::2", 15858, NoDevice}},
		{"::1:15858", Name{"::1", 15858, NoDevice}},
		{"FD00::2:15858:npu_3", Name{"FD00::2", 15858, 3}},
		{"1:2:3:4:5:6:7:8:443", Name{"1:2:3:4:5:6:7:8", 443, NoDevice}},
		{"fd00::2:1585", Name{"fd00::2:1585", 12001, NoDevice}},
		{strings.Repeat("a", MaxHostLength), Name{strings.Repeat("a", MaxHostLength), 12001, NoDevice}},
	} {
		got, err := Parse(c.in, 12001)
		require.NoError(t, err, c.in)
		assert.Equal(t, c.want, got, c.in)
	}
}

func TestParseSaysWhatIsWrongWithAName(t *testing.T) {
	for _, c := range []struct{ in, says string }{
		{"", "empty"},
		{"http://node1:8000", `"http://node1:8000" is a URL`},
		{"http://me:secret@node1:8000/?key=secret", `"http://node1:8000/" is a URL`},
		{":15003", "host is empty"},
		{"node1:", "port"},
		{"node1:x", `port "x"`},
		{"node1:+5", `port "+5"`},
		{"node1:65536", "65535"},
		{"node1:99999999999999999999", "65535"},
		{"node1:-1", "65535"},
		{"fd00::2:65536", "65535"},
		{"fd00::2:npu_3", "port"},
		{"fd00::2:x", "port"},
		{"node1:15003:", "npu_N"},
		{"node1:15003:gpu_1", `"gpu_1"`},
		{"node1:15003:3", "npu_N"},
		{"node1:15003:npu_", "npu_N"},
		{"node1:15003:npu_1:2", "npu_N"},
		{"node1:15003:npu_99999999999", "npu_N"},
		{"[::1", "brackets"},
		{"[]", "brackets"},
		{"[node1]:5", "brackets"},
		{"[::1]5", "follows the brackets"},
		{"[::1]:", "port"},
		{"[fe80::1%a:b]:5", "not an IPv6 address"},
		{"fe80::1%", "not an IPv6 address"},
		{"no de", "must not contain"},
		{"no\x00de", "must not contain"},
		{"node\n", "must not contain"},
		{"/node", "must not contain"},
		{"no\xffde", "UTF-8"},
		{strings.Repeat("a", MaxHostLength+1), "limit of 255"},
		{strings.Repeat("a", 1<<20) + ":1", "limit of 255"},
	} {
		_, err := Parse(c.in, 12001)
		require.Error(t, err, "%.80q", c.in)
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
		assert.Contains(t, err.Error(), c.says)
		assert.Less(t, len(err.Error()), 1000, "an error does not repeat a name of any length")
		assert.NotContains(t, err.Error(), "secret")
	}
}

func TestAHostMayBeInBracketsAndNotInHalfOfThem(t *testing.T) {
	for _, in := range []string{"[fe80::1%eth0]", "fe80::1%eth0"} {
		host, err := BareHost(in)
		require.NoError(t, err, in)
		assert.Equal(t, "fe80::1%eth0", host)
	}
	for _, in := range []string{"[fd00::1", "fd00::1]", "[", "]", "[]", "", "[[fd00::1]]"} {
		_, err := BareHost(in)
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK), in)
	}
}

func TestOneHostAndPortHasOneCanonicalName(t *testing.T) {
	for name, want := range map[string]string{
		"[fd00::2]:15858":        "[fd00::2]:15858",
		"fd00::2:15858":          "[fd00::2]:15858",
		"FD00:0:0::2:15858":      "[fd00::2]:15858",
		"fe80::1%eth0:15858":     "[fe80::1%eth0]:15858",
		"fd00::2":                "[fd00::2]:12001",
		"node1:15858:npu_3":      "node1:15858",
		"node1":                  "node1:12001",
		"a name that is no name": "a name that is no name",
	} {
		assert.Equal(t, want, Canonical(name, 12001), name)
	}
}

func TestNameThatIsAnAddressMayHaveBeenMeantWithAPort(t *testing.T) {
	for name, want := range map[string]bool{
		"fd00::2:1585": true, "::1:80": true, "fd00::2:15858": false, "[fd00::2:1585]": false, "fd00::2": false,
		"1:2:3:4:5:6:7:8": false, "::1": false, "node1:80": false, "": false, "fd00::2:15a": false,
		"fe80::1%eth0:15858": false,
	} {
		assert.Equal(t, want, MayMeanPort(name), name)
	}
}

func TestNamesPutIPv6InBrackets(t *testing.T) {
	assert.Equal(t, "node1:7", Name{"node1", 7, NoDevice}.HostPort())
	assert.Equal(t, "[::1]:7", Name{"::1", 7, NoDevice}.HostPort())
	assert.Equal(t, "[fe80::1%eth0]:7", Name{"fe80::1%eth0", 7, 2}.HostPort())
	assert.Equal(t, "[fe80::1%eth0]:7:npu_2", Name{"fe80::1%eth0", 7, 2}.String())
}

func FuzzParseRoundTrips(f *testing.F) {
	for _, seed := range []string{
		"node1", "node1:15003", "node1:15003:npu_3", "[::1]:5", "[::1]", "::1", "fe80::1%eth0", "fe80::1%eth0:12345",
		"[fe80::1%eth0]:1:npu_0", "", ":", "[", "]", "a:b:c:d", "\x00", "%:", "::%::",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := Parse(s, 12001)
		if err != nil {
			assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
			return
		}
		again, err := Parse(name.String(), 0)
		require.NoError(t, err)
		assert.Equal(t, name, again)
	})
}
