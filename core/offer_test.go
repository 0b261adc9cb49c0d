package core_test

import (
	"testing"
	"time"

	"kvferry/core"
	"kvferry/core/hostmem"
	"kvferry/core/layout"
	"kvferry/core/transporttest"

	"github.com/stretchr/testify/require"
)

// TestWhenTheTimeOfAnOfferIsOverItsRequestsEnd has a peer that stops in the middle of a request. The bytes that it may send
// later do not land.
func TestWhenTheTimeOfAnOfferIsOverItsRequestsEnd(t *testing.T) {
	ended := make(chan *core.Offer, 1)
	p := startPairWith(t, &transporttest.Transport{OnEvictOffer: func(o *core.Offer) { ended <- o }}, nil)
	place := layout.Place{Layout: cache(0x10000, 0x20000, 2, 4, layout.Span{Count: 4}), Blocks: []uint64{0}}
	offer, err := p.Offer(place, core.OfferOptions{Access: core.RemoteWrite, For: time.Hour})
	require.NoError(t, err)
	there, err := layout.ParseOffer(offer.Text())
	require.NoError(t, err)
	memory := hostmem.Strided{Base: 0x10000, Run: 8}
	used, err := p.Memory().UseOffer(there.Key, 1, core.Write, &memory)
	require.NoError(t, err)
	offer.PassTime()
	require.Same(t, offer, <-ended)
	used.End()
	_, err = p.Memory().UseOffer(there.Key, 1, core.Write, &memory)
	require.ErrorIs(t, err, core.ErrRevoked)
	require.NoError(t, offer.Revoke())
}

func TestAnOfferKeepsNoEngineThatIsClosed(t *testing.T) {
	p := startPairWith(t, &transporttest.Transport{}, nil)
	place := layout.Place{Layout: cache(0x10000, 0x20000, 2, 4, layout.Span{Count: 4}), Blocks: []uint64{0}}
	offer, err := p.Offer(place, core.OfferOptions{Access: core.RemoteWrite, For: time.Hour})
	require.NoError(t, err)
	require.NoError(t, p.Close())
	require.False(t, offer.HasTimer())
	_, err = p.Offer(place, core.OfferOptions{Access: core.RemoteWrite, For: time.Hour})
	require.Error(t, err)
}
