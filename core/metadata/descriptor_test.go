package metadata

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"kvferry/core/status"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sample(buffers int) *Descriptor {
	d := &Descriptor{Name: "[::1]:15003", Protocol: "tcp", DataHost: "::1", DataPort: 15004, ProtoVersion: 2}
	for i := range buffers {
		d.Buffers = append(d.Buffers, Buffer{Name: "cpu:0", Addr: 0x7f00_0000_0000 + uint64(i)<<20, Length: 1 << 20})
	}
	return d
}

func TestADescriptorIsEncodedAsMooncakeReadsIt(t *testing.T) {
	encoded, truncated := sample(1).Encode(DefaultMaxLength)
	assert.False(t, truncated)
	var got map[string]any
	require.NoError(t, json.Unmarshal(encoded, &got))
	assert.Regexp(t, regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}$`), got["timestamp"])
	delete(got, "timestamp")
	assert.Equal(t, map[string]any{
		"name": "[::1]:15003", "protocol": "tcp", "tcp_data_host": "::1", "tcp_data_port": 15004.0,
		"tcp_proto_version": 2.0, "rdma_server_name": "",
		"buffers": []any{map[string]any{"name": "cpu:0", "addr": float64(0x7f00_0000_0000), "length": float64(1 << 20)}},
	}, got)
}

func TestADescriptorSurvivesEncodingAndParsing(t *testing.T) {
	for _, n := range []int{0, 1, 1000} {
		want := sample(n)
		encoded, truncated := want.Encode(DefaultMaxLength)
		require.False(t, truncated)
		got, err := ParseDescriptor(encoded)
		require.NoError(t, err)
		want.BuildIndex()
		if n == 0 {
			got.Buffers = nil
		}
		assert.Equal(t, want, got)
	}
}

func TestADescriptorSaysWhatPeersMayDoWithABuffer(t *testing.T) {
	d := sample(3)
	d.Buffers[0].Access, d.Buffers[2].Access = ReadOnly, WriteOnly
	encoded, _ := d.Encode(DefaultMaxLength)
	require.Equal(t, 2, strings.Count(string(encoded), "kvferry_access"), "nothing is said of a buffer that all is allowed with")
	got, err := ParseDescriptor(encoded)
	require.NoError(t, err)
	require.Equal(t, d.Buffers, got.Buffers)
	require.True(t, got.IsRestricted())
	for _, b := range d.Buffers {
		found, ok := got.Contains(b.Addr+1, b.Length-1)
		require.True(t, ok)
		require.Equal(t, b.Access, found.Access)
	}
}

func TestAnAccessThatIsNotKnownCountsAsAll(t *testing.T) {
	for _, access := range []string{`""`, `"none"`, `"READ"`, `"readwrite"`, `null`, `1`, `true`, `[]`, `{"read": false}`} {
		d, err := ParseDescriptor([]byte(`{"name":"a:1","protocol":"tcp","tcp_data_port":2,"buffers":[{"name":"cpu:0","addr":4096,` +
			`"length":8,"kvferry_access":` + access + `}]}`))
		require.NoError(t, err, access)
		require.Equal(t, ReadWrite, d.Buffers[0].Access, access)
		require.False(t, d.IsRestricted(), access)
	}
}

func TestADescriptorTooLongKeepsItsFirstBuffers(t *testing.T) {
	d := sample(12)
	whole, truncated := d.Encode(math.MaxInt)
	require.False(t, truncated)
	_, truncated = d.Encode(len(whole))
	require.False(t, truncated, "the limit itself is long enough")

	none, truncated := d.Encode(0)
	require.True(t, truncated)
	for limit := len(none); limit < len(whole); limit++ {
		encoded, truncated := d.Encode(limit)
		require.True(t, truncated)
		require.LessOrEqual(t, len(encoded), limit)
		got, err := ParseDescriptor(encoded)
		require.NoError(t, err)
		require.True(t, got.Truncated, "the reader knows")
		require.Equal(t, d.Buffers[:len(got.Buffers)], append([]Buffer{}, got.Buffers...))
	}
}

// fromMooncake are descriptors as Mooncake's releases send them.
var fromMooncake = []string{
	// 0.3.8.post1
	`{"buffers":[{"addr":140159043498000,"length":2147483648,"name":"127.0.0.1:16524"}],"name":"127.0.0.1:16524","protocol":"tcp","tcp_data_port":15852,"timestamp":"2026-11-22 19:33:29.459086"}` + "\n",
	// 0.3.11.post1
	`{"buffers":[],"name":"127.0.0.1:15646","protocol":"tcp","tcp_data_port":16318,"timestamp":"2026-11-22 19:32:27.981505"}` + "\n",
	// 0.3.12.post1
	`{"buffers":[],"name":"127.0.0.1:15845","protocol":"tcp","tcp_data_port":15150,"tcp_proto_version":2,"timestamp":"2026-11-22 19:31:26.854016"}` + "\n",
	// 0.3.13.post1
	`{"buffers":[{"addr":140626221854736,"length":2147483648,"name":"[::1]:16423"}],"name":"[::1]:16423","protocol":"tcp","rdma_server_name":"","tcp_data_host":"::1","tcp_data_port":15790,"tcp_proto_version":2,"timestamp":"2026-11-22 19:31:20.552863"}` + "\n",
}

func TestMooncakesDescriptorsAreRead(t *testing.T) {
	want := []Descriptor{
		{Name: "127.0.0.1:16524", Protocol: "tcp", DataPort: 15852, ProtoVersion: 1, Buffers: []Buffer{{Name: "127.0.0.1:16524", Addr: 140159043498000, Length: 1 << 31}}},
		{Name: "127.0.0.1:15646", Protocol: "tcp", DataPort: 16318, ProtoVersion: 1, Buffers: []Buffer{}},
		{Name: "127.0.0.1:15845", Protocol: "tcp", DataPort: 15150, ProtoVersion: 2, Buffers: []Buffer{}},
		{Name: "[::1]:16423", Protocol: "tcp", DataHost: "::1", DataPort: 15790, ProtoVersion: 2, Buffers: []Buffer{{Name: "[::1]:16423", Addr: 140626221854736, Length: 1 << 31}}},
	}
	for i, encoded := range fromMooncake {
		got, err := ParseDescriptor([]byte(encoded))
		require.NoError(t, err)
		want[i].BuildIndex()
		assert.Equal(t, want[i], *got)
	}
}

func TestWhatADescriptorMayLackOrAdd(t *testing.T) {
	for encoded, version := range map[string]int{
		`{"protocol":"tcp","tcp_data_port":1}`:                                               1,
		`{"protocol":"tcp","tcp_data_port":65535,"tcp_proto_version":null,"buffers":null}`:   1,
		`{"protocol":"tcp","tcp_data_port":1,"tcp_proto_version":0}`:                         1,
		`{"protocol":"tcp","tcp_data_port":1,"tcp_proto_version":-3}`:                        1,
		`{"protocol":"tcp","tcp_data_port":1,"tcp_proto_version":3}`:                         3,
		`{"protocol":"tcp","tcp_data_port":1,"tcp_proto_version":9223372036854775807}`:       math.MaxInt32,
		`{"protocol":"tcp","tcp_data_port":1,"kvferry":{"x":[1,{}]},"metadata_version":"?"}`: 1,
		` {"protocol":"tcp","tcp_data_port":1,"tcp_data_host":null,"name":null} `:            1,
	} {
		d, err := ParseDescriptor([]byte(encoded))
		require.NoError(t, err, encoded)
		assert.Equal(t, version, d.ProtoVersion, encoded)
		assert.Empty(t, d.Buffers)
		assert.Empty(t, d.DataHost)
	}
}

func TestWhatIsNoDescriptorIsRefusedWithTheReason(t *testing.T) {
	const tcp = `{"protocol":"tcp","tcp_data_port":15428,`
	for _, c := range []struct {
		encoded, says string
		code          status.Code
	}{
		{``, "not the JSON", status.MalformedJSON},
		{`null`, "central store", status.MalformedJSON},
		{" null\n", "central store", status.MalformedJSON},
		{`[]`, "", status.MalformedJSON},
		{`"tcp"`, "", status.MalformedJSON},
		{`{`, "not the JSON", status.MalformedJSON},
		{`GET / HTTP/1.1`, "not the JSON", status.MalformedJSON},
		{`{}`, "no protocol", status.MalformedJSON},
		{`{"protocol":null,"tcp_data_port":1}`, "no protocol", status.MalformedJSON},
		{`{"protocol":"tcp"}`, "tcp_data_port (absent)", status.MalformedJSON},
		{`{"protocol":"tcp","tcp_data_port":null}`, "tcp_data_port (absent)", status.MalformedJSON},
		{`{"protocol":"tcp","tcp_data_port":0}`, "tcp_data_port 0", status.MalformedJSON},
		{`{"protocol":"tcp","tcp_data_port":-1}`, "tcp_data_port -1", status.MalformedJSON},
		{`{"protocol":"tcp","tcp_data_port":65536}`, "tcp_data_port 65536", status.MalformedJSON},
		{`{"protocol":"tcp","tcp_data_port":"15428"}`, "tcp_data_port must not be a JSON string", status.MalformedJSON},
		{`{"protocol":"tcp","tcp_data_port":1.5}`, "tcp_data_port", status.MalformedJSON},
		{`{"protocol":"tcp","tcp_data_port":99999999999999999999}`, "tcp_data_port", status.MalformedJSON},
		{tcp + `"tcp_proto_version":"2"}`, "tcp_proto_version", status.MalformedJSON},
		{tcp + `"tcp_data_host":7}`, "tcp_data_host", status.MalformedJSON},
		{tcp + `"tcp_data_host":"a\nb"}`, "tcp_data_host", status.MalformedJSON},
		{tcp + `"tcp_data_host":"[::1]"}`, "tcp_data_host", status.MalformedJSON},
		{tcp + `"buffers":{}}`, "buffers", status.MalformedJSON},
		{tcp + `"buffers":[null]}`, "buffer 0", status.MalformedJSON},
		{tcp + `"buffers":[{"name":"","addr":1,"length":1}]}`, "buffer 0", status.MalformedJSON},
		{tcp + `"buffers":[{"name":"*","addr":0,"length":1}]}`, "buffer 0", status.MalformedJSON},
		{tcp + `"buffers":[{"name":"*","addr":1,"length":1},{"name":"*","addr":1,"length":0}]}`, "buffer 1", status.MalformedJSON},
		{tcp + `"buffers":[{"name":"*","addr":18446744073709551615,"length":2}]}`, "0xffffffffffffffff", status.MalformedJSON},
		{tcp + `"buffers":[{"name":"*","addr":"1","length":1}]}`, "buffers.addr must not be a JSON string", status.MalformedJSON},
		{tcp + `"buffers":[{"name":"*","addr":-1,"length":1}]}`, "buffers.addr", status.MalformedJSON},
		{`{"protocol":"rdma","tcp_data_port":1}`, "MC_FORCE_TCP", status.NotSupportedTransport},
		{`{"protocol":"nvmeof"}`, "nvmeof", status.NotSupportedTransport},
		{`{"protocol":"the peer does not begin TLS"}`, `refuses this engine, and says "the peer does not begin TLS"`, status.RejectHandshake},
		{`{"protocol":["tcp","hip"],"tcp_data_port":1}`, "hip", status.NotSupportedTransport},
		{strings.Repeat(`{"a":`, 100_000), "", status.MalformedJSON},
	} {
		_, err := ParseDescriptor([]byte(c.encoded))
		require.Error(t, err, "%.100s", c.encoded)
		assert.Equal(t, c.code, status.Of(err, status.OK), "%.100s", c.encoded)
		assert.Contains(t, err.Error(), c.says)
		assert.Less(t, len(err.Error()), 1000)
	}
}

func TestABufferMayEndWithTheAddressSpace(t *testing.T) {
	d, err := ParseDescriptor([]byte(`{"protocol":"tcp","tcp_data_port":1,"buffers":[{"name":"*","addr":18446744073709551615,"length":1}]}`))
	require.NoError(t, err)
	_, inside := d.Contains(math.MaxUint64, 1)
	assert.True(t, inside)
	_, inside = d.Contains(math.MaxUint64, 2)
	assert.False(t, inside)
}

func TestAHundredThousandBuffersAreReadAndFound(t *testing.T) {
	const n = 100_000
	var encoded strings.Builder
	encoded.WriteString(`{"protocol":"tcp","tcp_data_port":1,"buffers":[`)
	for i := range n {
		if i > 0 {
			encoded.WriteByte(',')
		}
		encoded.WriteString(`{"name":"*","length":16,"addr":` + strconv.Itoa(32*(n-i)) + `}`)
	}
	encoded.WriteString(`]}`)
	d, err := ParseDescriptor([]byte(encoded.String()))
	require.NoError(t, err)
	require.Len(t, d.Buffers, n)
	b, inside := d.Contains(32*n/2+8, 8)
	assert.True(t, inside)
	assert.EqualValues(t, 32*n/2, b.Addr)
	_, inside = d.Contains(32*n/2+8, 9)
	assert.False(t, inside)
}

func TestContainsAgreesWithLookingAtEveryBuffer(t *testing.T) {
	for range 300 {
		d := &Descriptor{}
		for range rand.IntN(12) {
			d.Buffers = append(d.Buffers, Buffer{Name: "*", Addr: 1 + rand.Uint64N(40), Length: 1 + rand.Uint64N(20)})
		}
		d.BuildIndex()
		for range 100 {
			addr, length := rand.Uint64N(64), rand.Uint64N(12)
			want := false
			for _, b := range d.Buffers {
				want = want || length > 0 && b.Addr <= addr && addr+length <= b.Addr+b.Length
			}
			b, got := d.Contains(addr, length)
			require.Equal(t, want, got, "[%d, +%d) in %v", addr, length, d.Buffers)
			if got {
				require.True(t, b.Addr <= addr && addr+length <= b.Addr+b.Length)
			}
		}
	}
}

func TestContainsRefusesRangesThatWrap(t *testing.T) {
	d := sample(3)
	d.BuildIndex()
	_, inside := d.Contains(math.MaxUint64-5, 100)
	assert.False(t, inside)
	_, inside = d.Contains(d.Buffers[0].Addr, math.MaxUint64)
	assert.False(t, inside)
	_, inside = d.Contains(d.Buffers[0].Addr, 0)
	assert.False(t, inside)
}

func FuzzParseDescriptor(f *testing.F) {
	for _, encoded := range fromMooncake {
		f.Add([]byte(encoded))
	}
	ours, _ := sample(2).Encode(DefaultMaxLength)
	f.Add(ours)
	for _, encoded := range []string{`null`, `{}`, `[]`, `{"protocol":"rdma"}`, `{"protocol":["tcp"]}`, `{"protocol":"tcp","tcp_data_port":1e3}`, `{"buffers":[null]}`} {
		f.Add([]byte(encoded))
	}
	f.Fuzz(func(t *testing.T, encoded []byte) {
		d, err := ParseDescriptor(encoded)
		if err != nil {
			assert.Contains(t, []status.Code{status.MalformedJSON, status.NotSupportedTransport, status.RejectHandshake}, status.Of(err, status.OK))
			return
		}
		for _, b := range d.Buffers {
			_, inside := d.Contains(b.Addr, b.Length)
			assert.True(t, inside)
		}
		again, truncated := d.Encode(math.MaxInt)
		require.False(t, truncated)
		twice, err := ParseDescriptor(again)
		require.NoError(t, err)
		assert.Equal(t, d.DataPort, twice.DataPort)
		assert.Equal(t, len(d.Buffers), len(twice.Buffers))
	})
}

func TestWhatKinTellEachOtherIsTakenOrWhateverStandsThereIgnored(t *testing.T) {
	const name = "kvferry-0123456789abcdef0123456789abcdef"
	d := Descriptor{Name: "a:1", Protocol: "tcp", DataPort: 1, ProtoVersion: 2, IsKvferry: true, SameHostSocket: name}
	encoded, _ := d.Encode(1 << 20)
	parsed, err := ParseDescriptor(encoded)
	require.NoError(t, err)
	require.True(t, parsed.IsKvferry)
	require.Equal(t, name, parsed.SameHostSocket)
	for strange, kin := range map[string]bool{
		`null`: false, `7`: false, `"text"`: false, `[]`: false, `{}`: true, `{"neighbour":7}`: false,
		`{"neighbour":"/tmp/socket"}`: true, `{"neighbour":"kvferry-0123"}`: true, `{"neighbour":"` + name + `0"}`: true,
		`{"neighbour":"KVFERRY-0123456789abcdef0123456789abcdef"}`: true, `{"of_a_later_version":[1]}`: true,
	} {
		parsed, err := ParseDescriptor([]byte(`{"protocol":"tcp","tcp_data_port":1,"kvferry":` + strange + `}`))
		require.NoError(t, err, strange)
		require.Empty(t, parsed.SameHostSocket, strange)
		require.Equal(t, kin, parsed.IsKvferry, strange)
	}
}
