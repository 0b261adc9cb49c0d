package address

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listenHost is the address that an engine whose name has a host listens on.
func listenHost(host string) string {
	listen, _ := Inspect(host)
	return listen
}

func TestListenHostKeepsLoopbackNamesOffTheNetwork(t *testing.T) {
	assert.Equal(t, "127.0.0.1", listenHost("127.0.0.1"))
	assert.Equal(t, "127.0.0.2", listenHost("127.0.0.2"))
	host := netip.MustParseAddr(listenHost("localhost"))
	assert.True(t, host.IsLoopback(), host)
}

func TestListenHostIsEmptyForWhatIsNotAnAddressOfThisMachine(t *testing.T) {
	for _, host := range []string{"", "0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "no-such-host.invalid", "fe80::1"} {
		assert.Empty(t, listenHost(host), host)
	}
}

func TestListenHostTakesEveryInterfaceAddress(t *testing.T) {
	addrs, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range addrs {
		ip := netip.MustParsePrefix(a.String()).Addr()
		if ip.Is6() && ip.IsLinkLocalUnicast() {
			continue
		}
		assert.Equal(t, ip.String(), listenHost(ip.String()))
	}
}

func TestANameListensOnItsAddressOnlyWhenPeersCanMeanNoOther(t *testing.T) {
	local := prefixes{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("10.0.0.7/24"), netip.MustParsePrefix("2001:db8::7/64")}
	ips := func(list ...string) (found []netip.Addr) {
		for _, s := range list {
			found = append(found, netip.MustParseAddr(s))
		}
		return found
	}
	assert.Equal(t, "10.0.0.7", pickLocal(ips("10.0.0.7"), local))
	assert.Equal(t, "10.0.0.7", pickLocal(ips("::ffff:10.0.0.7"), local))
	assert.Equal(t, "2001:db8::7", pickLocal(ips("2001:db8::7"), local))
	assert.Empty(t, pickLocal(ips("10.0.0.7", "2001:db8::7"), local), "one listener cannot serve two addresses")
	assert.Empty(t, pickLocal(ips("127.0.1.1"), local), "peers resolve the name to another address")
	assert.Empty(t, pickLocal(ips("10.0.0.8"), local), "another machine's address")
	assert.Empty(t, pickLocal(nil, local))

	assert.Equal(t, "127.0.0.1", pickLoopback(ips("::1", "127.0.0.1")))
	assert.Equal(t, "::1", pickLoopback(ips("::1")))
	assert.Equal(t, "127.0.0.1", pickLoopback(ips("10.0.0.7")), "localhost never leaves the machine")
	assert.Equal(t, "127.0.0.1", pickLoopback(nil))
}

func TestListenFindsTheOnlyFreePortOfARange(t *testing.T) {
	held, minPort, maxPort := holdPorts(t, 5)
	free := held[3].Addr().(*net.TCPAddr).Port
	require.NoError(t, held[3].Close())
	l, err := Listen(context.Background(), Options{Hosts: []string{"127.0.0.1"}, MinPort: minPort, MaxPort: maxPort, Backlog: 16})
	require.NoError(t, err)
	defer l.Close()
	assert.Equal(t, free, l.Addr().(*net.TCPAddr).Port)
}

func TestListenOnAFullRangeNamesTheRangeAndTheReason(t *testing.T) {
	_, minPort, maxPort := holdPorts(t, 5)
	_, err := Listen(context.Background(), Options{Hosts: []string{"127.0.0.1"}, MinPort: minPort, MaxPort: maxPort, Backlog: 16})
	require.ErrorIs(t, err, unix.EADDRINUSE)
	assert.Equal(t, status.Socket, status.Of(err, status.OK))
	assert.Contains(t, err.Error(), fmt.Sprintf("%d-%d", minPort, maxPort))
	assert.Contains(t, err.Error(), "127.0.0.1")
}

func TestListenNamesAnAddressThatIsNotThisMachines(t *testing.T) {
	_, err := Listen(context.Background(), Options{Hosts: []string{"192.0.2.1"}, MinPort: 1024, MaxPort: 65535, Backlog: 16})
	require.ErrorIs(t, err, unix.EADDRNOTAVAIL)
	assert.Contains(t, err.Error(), "192.0.2.1")
}

func TestListenRefusesRangesThatAreNone(t *testing.T) {
	for _, r := range [][2]int{{2000, 1999}, {-1, 5}, {1, 65536}} {
		_, err := Listen(context.Background(), Options{Hosts: []string{"127.0.0.1"}, MinPort: r[0], MaxPort: r[1], Backlog: 16})
		assert.Equal(t, status.InvalidArgument, status.Of(err, status.OK))
	}
}

func TestListenOnAllAddressesTakesBothFamilies(t *testing.T) {
	l, err := Listen(context.Background(), Options{MinPort: 0, MaxPort: 0, Backlog: 16})
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	hosts := []string{"127.0.0.1"}
	if localAddresses().has(netip.IPv6Loopback()) {
		hosts = append(hosts, "::1")
	}
	for _, host := range hosts {
		c, err := net.Dial("tcp", net.JoinHostPort(host, port))
		require.NoError(t, err, host)
		require.NoError(t, c.Close())
	}
}

func TestTheBacklogIsSetInTheKernel(t *testing.T) {
	l, err := Listen(context.Background(), Options{Hosts: []string{"127.0.0.1"}, MinPort: 0, MaxPort: 0, Backlog: 7})
	require.NoError(t, err)
	defer l.Close()
	raw, err := l.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		// A listening socket reports its backlog as tcpi_sacked.
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		require.NoError(t, err)
		assert.EqualValues(t, 7, info.Sacked)
	}))
}

func TestANameThatNoPeerCanConnectToRaisesDoubt(t *testing.T) {
	for host, reason := range map[string]string{
		"0.0.0.0": "the address of no machine", "::": "the address of no machine", "192.0.2.1": "192.0.2.1 is no address of this machine",
		"2001:db8::1": "no address of this machine", "fe80::1": "without its interface", "no-such-host.invalid": "no-such-host.invalid does not resolve",
		"127.0.0.1": "", "127.0.0.9": "", "localhost": "",
	} {
		_, doubt := Inspect(host)
		if reason == "" {
			assert.Empty(t, doubt, host)
			continue
		}
		assert.Contains(t, doubt, reason)
	}
	local := prefixes{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("10.0.0.7/24")}
	far := netip.MustParseAddr("10.0.0.8")
	assert.Equal(t, "node7 resolves to 10.0.0.8, which is no address of this machine", doubtOfName("node7", []netip.Addr{far}, nil, local))
	assert.Empty(t, doubtOfName("node7", []netip.Addr{far, netip.MustParseAddr("::ffff:10.0.0.7")}, nil, local))
	assert.Empty(t, doubtOfName("node7", []netip.Addr{netip.MustParseAddr("127.0.1.1")}, nil, local), "peers resolve it to another address")
}

// Under systemd's RestrictAddressFamilies, or without descriptors, the addresses cannot be listed.
func TestAddressesThatCannotBeListedDoNotMakeAnEngineListenOnAll(t *testing.T) {
	interfaceAddrs = func() ([]net.Addr, error) { return nil, unix.EAFNOSUPPORT }
	t.Cleanup(func() { interfaceAddrs = net.InterfaceAddrs })
	for host, listen := range map[string]string{
		"127.0.0.1": "127.0.0.1", "127.0.0.9": "127.0.0.9", "localhost": "127.0.0.1",
		"203.0.113.7": "", "2001:db8::7": "", "0.0.0.0": "", "::": "", "224.0.0.1": "", "255.255.255.255": "",
	} {
		got, doubt := Inspect(host)
		assert.Equal(t, listen, got, host)
		assert.Equal(t, listen == "", doubt != "", host)
	}
}

func TestAnAddressCountsAsHereWhereTheKernelCannotBeAsked(t *testing.T) {
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: before.Max}))
	here := mayBind(netip.MustParseAddr("203.0.113.7"))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
	assert.True(t, here, "an engine listens there or not at all")
}

// holdPorts listens on n consecutive ports until the test ends.
func holdPorts(t *testing.T, n int) (held []net.Listener, minPort, maxPort int) {
	for first := 20000; first < 32000; first += n {
		held = held[:0]
		for port := first; port < first+n; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				break
			}
			t.Cleanup(func() { l.Close() })
			held = append(held, l)
		}
		if len(held) == n {
			return held, first, first + n - 1
		}
	}
	t.Fatal("no run of free ports between 20000 and 32000")
	return nil, 0, 0
}

func TestALackOfPortsToConnectFromIsExplained(t *testing.T) {
	err := os.NewSyscallError("connect", unix.EADDRNOTAVAIL)
	assert.Contains(t, HintAtConnect(err), "ip_local_port_range")
	assert.Empty(t, HintAtConnect(unix.ECONNREFUSED))
}

func TestListenNamesTheLackOfFileDescriptors(t *testing.T) {
	var was unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}))
	_, err := Listen(context.Background(), Options{Hosts: []string{"127.0.0.1"}, MinPort: 20000, MaxPort: 31999, Backlog: 16})
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	require.ErrorIs(t, err, unix.EMFILE)
	assert.Contains(t, err.Error(), "file descriptors")
}
