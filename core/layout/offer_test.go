package layout

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestThePlaceOfAnOfferCoversEachElementOfItsTokensAndNoOther(t *testing.T) {
	for seed := range uint64(80) {
		r := rand.New(rand.NewPCG(seed, 9))
		m := randomModel(r)
		tokens := upTo(r, 60)
		p := randomProcess(r, m, Span{0, m.layers}, Span{0, m.heads}, tokens)
		ranges, err := p.Place.Ranges()
		require.NoError(t, err)
		covered := make([]bool, len(p.memory))
		end := uint64(0)
		for _, some := range ranges {
			require.True(t, end == 0 || some.Address > end, "sorted, with gaps between")
			end = some.Address + some.Bytes
			for i := range some.Bytes {
				covered[some.Address-p.base+i] = true
			}
		}
		m.eachElement(p.room(), func(layer, kv, head, dim, token uint64) {
			element := p.element(layer, kv, head, dim, token)
			at := cap(p.memory) - cap(element)
			require.False(t, slices.Contains(covered[at:at+len(element)], false))
		})
		var bytes uint64
		for _, some := range ranges {
			bytes += some.Bytes
		}
		require.EqualValues(t, p.room()*m.layers*m.kv*m.heads*m.dim*m.element, bytes)
	}
}

func offeredForTest() *Offered {
	o := &Offered{Place: Place{Layout: small(), Blocks: []uint64{1, 0}, First: 1, Key: Key{1, 15: 2}}, Engine: "10.0.0.1:1", Read: true}
	return o
}

func TestAnOfferIsTheSameAfterItsWayAsText(t *testing.T) {
	want := offeredForTest()
	got, err := ParseOffer(want.JSON())
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestTextThatIsNoOfferIsRefused(t *testing.T) {
	good := string(offeredForTest().JSON())
	for _, change := range [][2]string{
		{`"kvferry_offer":1`, `"kvferry_offer":2`}, {`"key":"01`, `"key":"0`}, {`"key":"01`, `"key":"zz`},
		{`"access":"read"`, `"access":"all"`}, {`"engine":"10.0.0.1:1"`, `"engine":""`}, {`"first":1`, `"first":1000`},
		{`"kvferry_layout":1`, `"kvferry_layout":7`}, {`{"kvferry_offer"`, `["kvferry_offer"`}, {`"first":1`, `"first":-1`},
	} {
		require.Contains(t, good, change[0])
		_, err := ParseOffer([]byte(strings.Replace(good, change[0], change[1], 1)))
		require.Error(t, err, change[1])
	}
	_, err := ParseOffer(append([]byte(good), good...))
	require.Error(t, err)
	_, err = ParseOffer(make([]byte, MaxOfferText+1))
	require.Error(t, err)
}

func FuzzParseOffer(f *testing.F) {
	f.Add(offeredForTest().JSON())
	f.Fuzz(func(t *testing.T, written []byte) {
		o, err := ParseOffer(written)
		if err != nil {
			return
		}
		again, err := ParseOffer(o.JSON())
		require.NoError(t, err)
		require.Equal(t, o.Key, again.Key)
		_, _ = o.Place.Ranges()
	})
}
