package fair

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestABurstOfOneAddressIsAdmittedAsEarlierConnectionsLeave(t *testing.T) {
	d := NewDoor(Options{Limit: 4, Grace: time.Hour}, time.Hour)
	leaving := make(chan *Place, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for p := range leaving {
			d.Leave(p)
		}
	}()
	for range 100 {
		p, err := d.Admit(addr(1), func() { t.Error("evicted") }, nil)
		require.NoError(t, err)
		leaving <- p
	}
	close(leaving)
	<-done
	require.Zero(t, d.Gate.Held())
}

func TestConnectionsThatStayGiveWayWhenThePatienceIsOver(t *testing.T) {
	d := NewDoor(Options{Limit: 4, Grace: time.Hour}, time.Millisecond)
	evicted := 0
	for range 100 {
		_, err := d.Admit(addr(1), func() { evicted++ }, nil)
		require.NoError(t, err)
	}
	require.Equal(t, 98, evicted)
}

func TestADoorThatIsClosedDoesNotWait(t *testing.T) {
	d := NewDoor(Options{Limit: 1, Grace: time.Hour}, time.Hour)
	closed := make(chan struct{})
	close(closed)
	for range 3 {
		_, err := d.Admit(addr(1), nothing, closed)
		require.NoError(t, err)
	}
}
