package client

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"kvferry/core"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// connectedLane is a lane without goroutines, on one end of a connection.
func connectedLane(t *testing.T, config core.Config) *lane {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	p := newPeer(&Client{Options: Options{Config: &config, Processors: testProcessors}, ctx: ctx}, &core.Segment{Name: "peer"})
	l := newLane(p, &p.environment)
	conn, _ := tcptest.Connection(t)
	l.conn = &connection{Socket: socketOf(t, conn)}
	t.Cleanup(func() {
		l.watchdog.Stop()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.stuckTimer != nil {
			l.stuckTimer.Stop()
		}
	})
	return l
}

// TestALaneQuitsWhileItsReceiverLooksForWhatToReceive protects from a deadlock: closing the connection waits for the
// receiver, who needs the lane's lock.
func TestALaneQuitsWhileItsReceiverLooksForWhatToReceive(t *testing.T) {
	for name, end := range map[string]func(l *lane){
		"lost":           func(l *lane) { l.quit(syscall.ECONNRESET) },
		"given up":       func(l *lane) { l.quit(errAborted) },
		"sending failed": func(l *lane) { l.endSending(errBadLocal) },
	} {
		t.Run(name, func(t *testing.T) {
			l := connectedLane(t, core.DefaultConfig())
			looking, look, received, ended := make(chan struct{}, 1), make(chan struct{}), make(chan error), make(chan struct{})
			go func() {
				received <- l.conn.WhenReadable(func() bool {
					select {
					case looking <- struct{}{}:
					default:
					}
					<-look
					return l.readable()
				})
			}()
			<-looking
			go func() {
				end(l)
				close(ended)
			}()
			require.Eventually(t, func() bool { // the lane is ending
				l.mu.Lock()
				defer l.mu.Unlock()
				return l.broken != nil
			}, tcptest.Patience, time.Millisecond)
			close(look)
			for range 2 {
				select {
				case err := <-received:
					require.Error(t, err)
				case <-ended:
					ended = nil
				case <-time.After(tcptest.Patience):
					t.Fatal("deadlock")
				}
			}
		})
	}
}

func TestTheWatchdogEndsALaneOnlyWhenNothingHasMovedForTheTimeout(t *testing.T) {
	config := core.DefaultConfig()
	config.StatusTimeout, config.ProgressTimeout = time.Hour, 2*time.Hour
	for name, c := range map[string]struct {
		quiet  time.Duration // since the watchdog saw something move
		moves  bool          // something has moved since
		unsent bool
		ends   bool
	}{
		"just sent":                         {quiet: time.Minute},
		"waiting for the status":            {quiet: 59 * time.Minute},
		"waiting too long for the status":   {quiet: 61 * time.Minute, ends: true},
		"moving again":                      {quiet: 61 * time.Minute, moves: true},
		"still sending":                     {quiet: 61 * time.Minute, unsent: true},
		"not getting on with sending":       {quiet: 121 * time.Minute, unsent: true, ends: true},
		"getting on with sending after all": {quiet: 121 * time.Minute, unsent: true, moves: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := connectedLane(t, config)
			l.flight.push(piece{op: core.Read, remote: 0x1000, length: 77})
			l.watching, l.movedAt = true, time.Now().Add(-c.quiet)
			if c.moves {
				l.moved.Add(1)
			}
			if c.unsent {
				l.laidOut = wire.HeaderSize
			}
			l.watch()
			require.Equal(t, c.ends, errors.Is(l.broken, errStalled), "%v", l.broken)
			if c.ends {
				require.ErrorContains(t, l.broken, `segment "peer"`)
				require.ErrorContains(t, l.broken, "77 bytes at 0x1000")
			}
		})
	}
}

func TestTheWatchdogRestsWhileNothingIsInFlight(t *testing.T) {
	l := connectedLane(t, core.DefaultConfig())
	l.watching, l.movedAt = true, time.Now().Add(-time.Hour)
	l.watch()
	require.False(t, l.watching)
	require.NoError(t, l.broken)
	require.False(t, l.watchdog.Stop(), "the timer runs")
}
