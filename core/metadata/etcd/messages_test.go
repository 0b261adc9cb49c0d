package etcd

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// header is what begins each reply.
const header = "\n\x12\b\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01\x10\a\x18\xac\x02 \x02"

const aLease = 1 << 62

// The bytes are those that etcd's own library has for the same messages.

func TestRequestsAreThoseOfEtcdsOwnLibrary(t *testing.T) {
	for want, got := range map[string][]byte{
		"\n\x03a/b":      rangeRequest("a/b"),
		"\n\x03a/bH\x01": countRequest("a/b"),
		"\n\x01k\x12\x02v\n\x18\x80\x80\x80\x80\x80\x80\x80\x80@": putRequest("k", "v\n", aLease),
		"\n\x01k\x12\x02v\n": putRequest("k", "v\n", 0),
		"\n\a\x10\x02\x1a\x01k0\x00\x12\n\x12\b\n\x01k\x12\x01v\x18\x05": txnRequest("k", 0, opPut, putRequest("k", "v", 5)),
		"\n\b\x10\x02\x1a\x01k0\xac\x02\x12\x05\x1a\x03\n\x01k":          txnRequest("k", 300, opDelete, deleteRequest("k")),
		"\b\x1e":                              grantRequest(30),
		"\b\x80\x80\x80\x80\x80\x80\x80\x80@": keepAliveRequest(aLease),
		"\n\x04root\x12\x06secret":            loginRequest("root", "secret"),
	} {
		require.Equal(t, want, string(got))
	}
}

func TestRepliesOfEtcdsOwnLibraryAreRead(t *testing.T) {
	e, found, err := rangeReply([]byte(header + "\x12\x19\n\x01k\x10\xab\x02\x18\xac\x02 \x02*\x02v\n0\x80\x80\x80\x80\x80\x80\x80\x80@ \x01"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, entry{value: []byte("v\n"), revision: 300}, e)
	e, found, err = rangeReply([]byte(header))
	require.NoError(t, err)
	require.False(t, found)
	require.Zero(t, e)

	for reply, want := range map[string]bool{header + "\x10\x01\x1a\x16\x12\x14" + header: true, header: false} {
		done, err := txnReply([]byte(reply))
		require.NoError(t, err)
		require.Equal(t, want, done)
	}
	lease, seconds, err := leaseReply([]byte(header + "\x10\x80\x80\x80\x80\x80\x80\x80\x80@\x18\x1e"))
	require.NoError(t, err)
	require.Equal(t, []int64{aLease, 30}, []int64{lease, seconds})
	_, seconds, err = leaseReply([]byte(header + "\x10\x80\x80\x80\x80\x80\x80\x80\x80@"))
	require.NoError(t, err)
	require.Zero(t, seconds, "the lease has ended")
	token, err := loginReply([]byte(header + "\x12\x05abc.7"))
	require.NoError(t, err)
	require.Equal(t, "abc.7", token)
}

func TestFieldsThatALaterEtcdMayAddArePassedOver(t *testing.T) {
	later := "\x7a\x02hi" + "\x80\x01\x05" + "\x89\x0112345678" + "\x8d\x011234" + "\x93\x01\x08\x01\x94\x01" // of every wire type
	token, err := loginReply([]byte(later + "\x12\x05abc.7" + later))
	require.NoError(t, err)
	require.Equal(t, "abc.7", token)
}

func TestRepliesThatAreNoMessagesAreErrors(t *testing.T) {
	for _, reply := range []string{"\x12", "\x12\x05abc", "\x10\xff", "\x00", "\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "\x12\x01\x12", "\x07"} {
		_, _, err := rangeReply([]byte(reply))
		require.ErrorContains(t, err, "no message of etcd", "%q", reply)
	}
}

func FuzzReplies(f *testing.F) {
	f.Add([]byte(header + "\x12\x19\n\x01k\x10\xab\x02\x18\xac\x02 \x02*\x02v\n0\x80\x80\x80\x80\x80\x80\x80\x80@ \x01"))
	f.Add([]byte(header + "\x10\x01\x1a\x16\x12\x14" + header))
	f.Fuzz(func(t *testing.T, reply []byte) {
		e, found, err := rangeReply(reply)
		if err == nil && !found {
			require.Zero(t, e)
		}
		require.LessOrEqual(t, len(e.value), len(reply))
		_, _ = txnReply(reply)
		_, _, _ = leaseReply(reply)
		token, _ := loginReply(reply)
		require.LessOrEqual(t, len(token), len(reply))
	})
}
