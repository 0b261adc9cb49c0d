package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net/netip"
	"runtime"
	"testing"
	"testing/iotest"

	"kvferry/core/fair"
	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// announce is a frame's length, and after it whatever bytes are given.
func announce(length uint64, then string) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, length), then...)
}

func TestFramesHaveTheirLengthKindAndBody(t *testing.T) {
	assert.Equal(t, announce(3, "\x01{}"), encodeFrame(kindMetadata, false, []byte("{}")))
	assert.Equal(t, announce(2, "{}"), encodeFrame(kindConnection, true, []byte("{}")))
}

func TestFramesAreReadHoweverTheyArrive(t *testing.T) {
	for _, old := range []bool{false, true} {
		stream := append(encodeFrame(kindConnection, old, []byte(`{"a":1}`)), "more"...)
		f, err := readFrame(iotest.OneByteReader(bytes.NewReader(stream)), 64)
		require.NoError(t, err)
		assert.Equal(t, kindConnection, f.kind)
		assert.Equal(t, old, f.old)
		body, err := f.readBody()
		require.NoError(t, err)
		assert.Equal(t, `{"a":1}`, string(body))
	}
}

func TestFrameLengthsOutsideTheLimitsAreRefused(t *testing.T) {
	for _, length := range []uint64{0, 65, 1 << 31, 1 << 63, math.MaxUint64} {
		_, err := readFrame(bytes.NewReader(announce(length, "\x01{}")), 64)
		require.Error(t, err)
		assert.Equal(t, status.MalformedJSON, status.Of(err, status.OK))
		assert.Contains(t, err.Error(), "MC_HANDSHAKE_MAX_LENGTH")
	}
	_, err := readFrame(bytes.NewReader(announce(64, "\x01{}")), 64)
	assert.NoError(t, err)
}

func TestAFrameThatEndsEarlyIsAnErrorAtEveryByte(t *testing.T) {
	whole := encodeFrame(kindNotify, false, []byte(`{"name":"a"}`))
	for n := range whole {
		f, err := readFrame(bytes.NewReader(whole[:n]), 64)
		if n == 0 {
			assert.ErrorIs(t, err, errNoFrame)
			continue
		}
		if err == nil {
			discarded, derr := readFrame(bytes.NewReader(whole[:n]), 64)
			require.NoError(t, derr)
			assert.Error(t, discarded.discardBody())
			_, err = f.readBody()
		}
		assert.Equal(t, status.Socket, status.Of(err, status.OK), "after %d bytes", n)
	}
}

func TestAnAnnouncedLengthTakesNoMemoryUntilItsBytesArrive(t *testing.T) {
	stream := announce(1<<27, "\x02{")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f, err := readFrame(bytes.NewReader(stream), 1<<27)
	require.NoError(t, err)
	_, err = f.readBody()
	runtime.ReadMemStats(&after)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
}

// fuzzStreams are what peers have been seen to send, and what they might.
func fuzzStreams(f *testing.F) {
	for kind := kindConnection; kind <= kindProbe; kind++ {
		f.Add(encodeFrame(kind, false, []byte("{}")))
	}
	for _, descriptor := range fromMooncake {
		f.Add(encodeFrame(kindMetadata, false, []byte(descriptor)))
	}
	f.Add(encodeFrame(kindNotify, false, []byte(`{"name":"a","notify_msg":"success"}`)))
	f.Add(encodeFrame(kindProbe, false, []byte(`{"status":"success"}`)))
	f.Add(encodeFrame(kindConnection, true, []byte(`{"local_nic_path":""}`)))
	f.Add(announce(0, ""))
	f.Add(announce(1, "\x01"))
	f.Add(announce(math.MaxUint64, "\x01{}"))
	f.Add(announce(1<<20, "\x01{}"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{})
}

// FuzzRequests is the server's side: any stream gives an answer of the request's kind, or an error.
func FuzzRequests(f *testing.F) {
	fuzzStreams(f)
	s := &Server{handlers: Handlers{
		Descriptor: func() *Descriptor { return sample(1) },
		Notify:     func(Notification, netip.Addr) error { return nil },
	}, options: HandshakeOptions{MaxLength: DefaultMaxLength}, receiving: fair.New(fair.Options{Limit: 2 * DefaultMaxLength})}
	f.Fuzz(func(t *testing.T, stream []byte) {
		request, err := readFrame(bytes.NewReader(stream), DefaultMaxLength)
		if err != nil {
			assert.True(t, errors.Is(err, errNoFrame) || status.Of(err, status.OK) != status.OK)
			return
		}
		body, err := s.reply(request, caller{})
		if err != nil {
			assert.NotEqual(t, status.OK, status.Of(err, status.OK))
			return
		}
		reply, err := readFrame(bytes.NewReader(encodeFrame(request.kind, request.old, body)), DefaultMaxLength)
		require.NoError(t, err)
		assert.Equal(t, request.kind, reply.kind)
		assert.Equal(t, request.old, reply.old)
	})
}

// FuzzReplies is the client's side: any stream gives the body of a frame of the kind that was asked for, or an error.
func FuzzReplies(f *testing.F) {
	fuzzStreams(f)
	f.Fuzz(func(t *testing.T, stream []byte) {
		body, err := readReply(bytes.NewReader(stream), kindMetadata, DefaultMaxLength)
		if err != nil {
			assert.True(t, errors.Is(err, errNoFrame) || status.Of(err, status.OK) != status.OK)
			return
		}
		again := encodeFrame(kindMetadata, false, body)
		assert.Equal(t, again, stream[:len(again)])
	})
}
