package security

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestStrangersCannotAddPeersToTheCountsWithoutEnd(t *testing.T) {
	f := failures{shown: 2}
	for i := range 100 {
		f.add(&net.TCPAddr{IP: net.IPv4(10, 0, 0, byte(i)), Port: i}, Plain)
		f.add(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: i}, OtherSecret)
	}
	require.Equal(t, []Failures{
		{"10.0.0.0", Plain, 1}, {"10.0.0.1", OtherSecret, 100}, {"10.0.0.1", Plain, 1}, {OtherPeers, Plain, 98},
	}, f.all())
}

func TestAPeerOfThisHostHasNoAddress(t *testing.T) {
	require.Equal(t, Local, addressOf(&net.UnixAddr{}))
	require.Equal(t, "10.0.0.1", addressOf(&net.TCPAddr{IP: net.ParseIP("::ffff:10.0.0.1")}))
}

// What a lost connection explains is no failure of a proof.
func TestOnlyWhatSaysSomethingAboutThePeerCounts(t *testing.T) {
	for _, err := range []error{context.DeadlineExceeded, os.ErrDeadlineExceeded, context.Canceled, net.ErrClosed} {
		require.Empty(t, kindOf(fmt.Errorf("amid the handshake: %w", err)), err)
	}
	require.Equal(t, Broken, kindOf(fmt.Errorf("amid the handshake: %w", unix.ECONNRESET)), "this is how a peer refuses")
}

func TestCountingWithoutSecurityDoesNothing(t *testing.T) {
	var off *Policy
	off.CountPlain(&net.TCPAddr{})
}
