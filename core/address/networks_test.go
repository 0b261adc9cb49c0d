package address

import (
	"net/netip"
	"strings"
	"testing"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNetworksContainTheirAddressesAndNoOthers(t *testing.T) {
	networks, err := ParseNetworks("10.0.0.0/8, 192.0.2.7,fd00:1::/32 , fe80::/10,0.0.0.0/32")
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.0/8,192.0.2.7/32,fd00:1::/32,fe80::/10,0.0.0.0/32", networks.String())
	for _, ip := range []string{"10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3", "192.0.2.7", "fd00:1::9", "fe80::1%eth0"} {
		assert.True(t, networks.Contain(netip.MustParseAddr(ip)), ip)
	}
	for _, ip := range []string{"11.0.0.0", "9.255.255.255", "192.0.2.8", "::ffff:192.0.2.8", "fd00:2::9", "::1", "127.0.0.1", "::10.0.0.1"} {
		assert.False(t, networks.Contain(netip.MustParseAddr(ip)), ip)
	}
}

func TestNoNetworksAreAllNetworks(t *testing.T) {
	networks, err := ParseNetworks("")
	require.NoError(t, err)
	for _, ip := range []string{"10.0.0.1", "::1", "2001:db8::1"} {
		assert.True(t, networks.Contain(netip.MustParseAddr(ip)), ip)
	}
	networks, err = ParseNetworks("0.0.0.0/0")
	require.NoError(t, err)
	assert.True(t, networks.Contain(netip.MustParseAddr("192.0.2.7")))
	assert.False(t, networks.Contain(netip.MustParseAddr("2001:db8::1")), "all IPv4 addresses are not all addresses")
}

func TestWhatIsNoNetworkIsAnError(t *testing.T) {
	for text, reason := range map[string]string{
		" ": "no network", "10.0.0.0/33": "no network", "10.0.0/8": "no network", "node7": "no network", "10.0.0.0/8,": "no network", "10.0.0.0/8 fd00::/8": "no network",
		"10.0.0.0/255.0.0.0": "no network", "10.0.0.0-10.0.0.9": "no network",
		"fe80::1%eth0": "without %eth0", "fe80::1%eth0/64": "without %eth0", "::ffff:10.0.0.1%eth0": "without %eth0",
		"10.0.0.7/8": "10.0.0.0/8 is the network, 10.0.0.7 the address", "::ffff:10.0.0.0/104": "write it as IPv4", "::ffff:10.0.0.1": "write it as IPv4",
		strings.Repeat("10.0.0.0/8,", maxEntries) + "10.0.0.0/8": "257 networks",
	} {
		_, err := ParseNetworks(text)
		require.Error(t, err, text)
		assert.Contains(t, err.Error(), reason)
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
	}
}

func FuzzParseNetworks(f *testing.F) {
	f.Add("10.0.0.0/8,fd00::/8,192.0.2.7", "10.1.2.3")
	f.Add("::ffff:10.0.0.0/104", "::ffff:10.0.0.1")
	f.Fuzz(func(t *testing.T, text, address string) {
		networks, err := ParseNetworks(text)
		if err != nil {
			return
		}
		again, err := ParseNetworks(networks.String())
		require.NoError(t, err)
		assert.Equal(t, networks, again)
		if ip, err := netip.ParseAddr(address); err == nil {
			assert.Equal(t, networks.Contain(ip), networks.Contain(netip.AddrFrom16(ip.As16())), "an IPv4 address in either notation")
		}
	})
}

func TestHostsToListenOnAreAddresses(t *testing.T) {
	for text, want := range map[string][]string{
		"": nil, "10.0.0.1": {"10.0.0.1"}, "10.0.0.1, [fd00::1],10.0.0.1": {"10.0.0.1", "fd00::1"}, "::": {"::"}, "0.0.0.0": {"0.0.0.0"}, "fe80::1%eth0": {"fe80::1%eth0"},
		"::ffff:10.0.0.1": {"10.0.0.1"},
	} {
		hosts, err := ParseHosts(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, hosts)
	}
	for text, reason := range map[string]string{
		",": "no IP address", "eth0": "no IP address", "[fd00::1": "no IP address", "fd00::1]": "no IP address", "[]": "no IP address", "10.0.0.1:80": "no IP address", "10.0.0.0/8": "no IP address", "*": "no IP address",
		"2001:db8::1%eth0": "without %eth0", "::%eth0": "without %eth0", "::ffff:10.0.0.1%eth0": "without %eth0", "fe80::1%": "no IP address",
		"::,10.0.0.1": ":: stands for all", "fd00::1,0.0.0.0": "0.0.0.0 stands for all",
	} {
		_, err := ParseHosts(text)
		require.Error(t, err, text)
		assert.Contains(t, err.Error(), reason)
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
	}
}
