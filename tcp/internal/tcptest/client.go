package tcptest

import (
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

type ClientConn interface {
	net.Conn
	CloseWrite() error
}

// Client is a peer made of plain socket calls.
type Client struct {
	t    testing.TB
	Conn ClientConn
}

func (c *Client) Send(parts ...[]byte) {
	c.t.Helper()
	var all []byte
	for _, b := range parts {
		all = append(all, b...)
	}
	_, err := c.Conn.Write(all)
	require.NoError(c.t, err)
}

func (c *Client) Expect(want []byte) {
	c.t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(c.Conn, got)
	require.NoError(c.t, err)
	require.Equal(c.t, want, got)
}

func (c *Client) ExpectStatus(want uint32) {
	c.t.Helper()
	b := make([]byte, wire.StatusSize)
	wire.PutStatus(b, want)
	c.Expect(b)
}

func (c *Client) ExpectEnd() {
	c.t.Helper()
	n, err := c.Conn.Read(make([]byte, 1))
	require.Equal(c.t, io.EOF, err, "%d bytes", n)
}

func (c *Client) ExpectReset() {
	c.t.Helper()
	n, err := c.Conn.Read(make([]byte, 1))
	require.ErrorIs(c.t, err, syscall.ECONNRESET, "%d bytes", n)
}

func Request(op core.Opcode, v2 bool, addr uintptr, length uint64) []byte {
	b := make([]byte, wire.HeaderSize)
	wire.PutHeader(b, sentAs(op), uint64(addr), length, v2)
	return b
}

func WriteV1(addr uintptr, payload []byte) []byte {
	return append(Request(core.Write, false, addr, uint64(len(payload))), payload...)
}

func WriteV2(addr uintptr, payload []byte) []byte {
	return append(Request(core.Write, true, addr, uint64(len(payload))), payload...)
}

func ReadV1(b []byte) []byte { return Request(core.Read, false, AddressOf(b), uint64(len(b))) }

func ReadV2(b []byte) []byte { return Request(core.Read, true, AddressOf(b), uint64(len(b))) }

func WriteByAddress(addr uintptr, payload []byte) []byte {
	b := make([]byte, wire.HeaderSize)
	wire.PutHeaderByAddress(b, wire.Write, uint64(addr), uint64(len(payload)), uint64(AddressOf(payload)))
	return b
}

func ReadByAddress(b []byte) []byte {
	r := make([]byte, wire.HeaderSize)
	wire.PutHeaderByAddress(r, wire.Read, uint64(AddressOf(b)), uint64(len(b)), 0)
	return r
}

func (c *Client) ExpectGrant(want wire.Grant) {
	c.t.Helper()
	b := make([]byte, wire.GrantSize)
	wire.PutGrant(b, want)
	c.Expect(b)
}

// ExpectSilence waits a while for something that must not come.
func (c *Client) ExpectSilence() {
	c.t.Helper()
	require.NoError(c.t, c.Conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	n, err := c.Conn.Read(make([]byte, 1))
	var timeout net.Error
	require.ErrorAs(c.t, err, &timeout, "%d bytes", n)
	require.True(c.t, timeout.Timeout(), err)
	require.NoError(c.t, c.Conn.SetReadDeadline(time.Now().Add(Patience)))
}

// Greet says hello on a connection of plain socket calls.
func (c *Client) Greet(h wire.Hello) wire.Answer {
	c.t.Helper()
	c.Send(h.Encode())
	return c.Answer()
}

// Answer receives the answer to a hello. What it says of the target's age is checked, and left out.
func (c *Client) Answer() wire.Answer {
	c.t.Helper()
	answer, err := wire.ReadAnswer(c.Conn)
	require.NoError(c.t, err)
	require.Positive(c.t, answer.Age)
	require.Less(c.t, answer.Age, time.Since(testsBegan))
	answer.Age = 0
	return answer
}

var testsBegan = time.Now()

// NewClient makes a client of a connection, and closes it at the end of the test.
func NewClient(t testing.TB, conn ClientConn) *Client {
	t.Helper()
	require.NoError(t, conn.SetDeadline(time.Now().Add(Patience)))
	t.Cleanup(func() { _ = conn.Close() })
	return &Client{t, conn}
}

func sentAs(op core.Opcode) wire.Opcode {
	if op == core.Write {
		return wire.Write
	}
	return wire.Read
}
