package metrics

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// retriesOf are the retries of each name that is shown.
func retriesOf(s *Peers) map[string]uint64 {
	all := map[string]uint64{}
	for _, shown := range s.Values(nil) {
		all[shown.Name] = shown.Counts[Retries]
	}
	return all
}

func TestNoMorePeersAreShownByNameThanTheLimit(t *testing.T) {
	s := NewPeers(2)
	require.Empty(t, s.Values(nil))
	for i, name := range []string{"a", "b", "c", "d"} {
		s.Add(name, 1).Add(Retries, uint64(i+1))
	}
	require.Equal(t, map[string]uint64{"a": 1, "b": 2, OtherPeers: 7}, retriesOf(s))

	none := NewPeers(0)
	none.Add("a", 1).Add(Retries, 5)
	require.Equal(t, map[string]uint64{OtherPeers: 5}, retriesOf(none))
}

func TestAPeerThatIsGoneIsForgotten(t *testing.T) {
	s := NewPeers(1)
	a, b := s.Add("a", 1), s.Add("b", 1)
	a.Add(Retries, 1)
	b.Add(Retries, 2)
	s.Remove(a)
	require.Equal(t, map[string]uint64{OtherPeers: 2}, retriesOf(s), "a peer keeps the name that it was shown by")
	s.Remove(b)
	s.Remove(b)
	require.Equal(t, map[string]uint64{OtherPeers: 2}, retriesOf(s), "the count of the other ones does not shrink")
	s.Add("c", 1).Add(Retries, 4)
	require.Equal(t, map[string]uint64{"c": 4, OtherPeers: 2}, retriesOf(s))
}

func TestAPeerThatIsNotUsedMakesRoomForANewOne(t *testing.T) {
	s := NewPeers(2)
	a, b := s.Add("a", time.Hour), s.Add("b", time.Hour+1)
	a.Add(Retries, 10)
	now := time.Hour + forgetTime
	s.Add("c", now-1).Add(Retries, 1)
	require.Equal(t, map[string]uint64{"a": 10, "b": 0, OtherPeers: 1}, retriesOf(s), "a was used a short while ago")
	s.Add("d", now)
	require.Equal(t, map[string]uint64{"b": 0, "d": 0, OtherPeers: 1}, retriesOf(s), "what a had counted by its name does not move")
	a.Add(Retries, 3)
	require.Equal(t, map[string]uint64{"b": 0, "d": 0, OtherPeers: 4}, retriesOf(s))
	s.Remove(a)
	require.Equal(t, map[string]uint64{"b": 0, "d": 0, OtherPeers: 4}, retriesOf(s))
	require.Equal(t, OtherPeers, s.NameOf(a))
	require.Equal(t, "b", s.NameOf(b))
}

func TestPeersWithOneNameAreShownTogether(t *testing.T) {
	s := NewPeers(5)
	s.Add("a", 1).Add(Retries, 1)
	s.Add("a", 1).Add(Retries, 2)
	require.Equal(t, map[string]uint64{"a": 3}, retriesOf(s))
}

func TestEveryCounterOfAPeerIsItsOwn(t *testing.T) {
	all := []PeerCounter{Retries, Refusals, Connected, Lost, Unreachable}
	for _, o := range Operations {
		all = append(all, RequestsOf(o))
		for _, p := range Paths {
			all = append(all, BytesOf(o, p))
		}
	}
	for _, r := range Reasons() {
		all = append(all, FailuresOf(r))
	}
	var p Peer
	for i, c := range all {
		p.Add(c, uint64(i+1))
	}
	counts := p.Counts()
	require.Len(t, all, len(counts))
	for i, c := range all {
		require.EqualValues(t, i+1, counts[c])
	}
	require.Equal(t, counts[BytesOf(Write, TCP)]+counts[BytesOf(Write, Host)]+counts[BytesOf(Write, Local)], p.Bytes(Write))
}
