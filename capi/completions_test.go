package main

import (
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// readable reports whether poll would return a descriptor at once.
func readable(t *testing.T, fd int) bool {
	t.Helper()
	polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(polled, 0)
	require.NoError(t, err)
	return n == 1
}

// announcing makes an engine and a descriptor of its completions, from which what was there is taken.
func announcing(t *testing.T) (*core.Engine, *completions, int) {
	t.Helper()
	e, err := core.New(core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: core.DefaultConfig()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	c := &completions{}
	fd, err := c.descriptor(e)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Close(fd)) })
	return e, c, fd
}

func TestADescriptorIsReadableAsLongAsThereIsSomethingToTake(t *testing.T) {
	_, c, fd := announcing(t)
	require.False(t, readable(t, fd))
	for id := range uint64(3) {
		c.add(id)
	}
	require.True(t, readable(t, fd))
	room := make([]uint64, 2)
	require.Equal(t, 2, c.take(room))
	require.Equal(t, []uint64{0, 1}, room)
	require.True(t, readable(t, fd))
	require.Equal(t, 1, c.take(room))
	require.False(t, readable(t, fd))
	require.Zero(t, c.take(room))
}

func TestADescriptorThatIsMadeLaterShowsWhatWaits(t *testing.T) {
	e, c, _ := announcing(t)
	c.add(1)
	later, err := c.descriptor(e)
	require.NoError(t, err)
	require.True(t, readable(t, later))
	require.NoError(t, unix.Close(later))

	fresh := &completions{}
	fresh.add(1)
	fd, err := fresh.descriptor(e)
	require.NoError(t, err)
	require.True(t, readable(t, fd))
	require.NoError(t, unix.Close(fd))
	fresh.end()
}

func TestADescriptorIsReadableForEverOnceTheEngineHasEnded(t *testing.T) {
	_, c, fd := announcing(t)
	c.add(1)
	c.end()
	room := make([]uint64, 2)
	require.Equal(t, 1, c.take(room))
	require.Zero(t, c.take(room))
	require.True(t, readable(t, fd))
}

func TestMessagesAreAnnouncedOnceUntilTheyAreTaken(t *testing.T) {
	e, c, fd := announcing(t)
	room := make([]uint64, 4)
	c.listen(e)
	require.Equal(t, 1, c.take(room), "what came before is announced, too")
	require.NoError(t, e.Notify(core.LocalSegment, metadata.Notification{Name: "a"}))
	require.NoError(t, e.Notify(core.LocalSegment, metadata.Notification{Name: "b"}))
	require.True(t, readable(t, fd))
	require.Equal(t, 1, c.take(room))
	require.Equal(t, messageArrived, room[0])
	require.NoError(t, e.Notify(core.LocalSegment, metadata.Notification{Name: "c"}))
	require.Equal(t, 1, c.take(room))
}

func TestABatchThatHasEndedIsAnnouncedAtOnceAndFewerThanTheLimitWait(t *testing.T) {
	e, c, fd := announcing(t)
	b, err := e.AllocateBatch(0)
	require.NoError(t, err)
	require.NoError(t, c.reserve())
	c.announce(b)
	require.True(t, readable(t, fd))
	c.announced = mostAnnounced
	require.ErrorContains(t, c.reserve(), "kvferry_completions_next")
	require.Equal(t, 1, c.take(make([]uint64, 1)))
	require.NoError(t, c.reserve())
	require.Error(t, c.reserve())
	c.release()
	require.NoError(t, c.reserve())
}

func TestADescriptorOfAnEngineThatHasEndedIsReadableAndTheCallersAlone(t *testing.T) {
	e, c, _ := announcing(t)
	c.add(1)
	c.end()
	late, err := c.descriptor(e)
	require.NoError(t, err)
	require.True(t, readable(t, late))
	require.NoError(t, unix.Close(late))
	require.Zero(t, c.event, "the engine has no other one")
}

func TestADescriptorWorksWhereStandardInputIsClosed(t *testing.T) {
	e, err := core.New(core.Options{Name: "127.0.0.1", Metadata: "P2PHANDSHAKE", Config: core.DefaultConfig()})
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	input, err := unix.Dup(unix.Stdin)
	require.NoError(t, err)
	require.NoError(t, unix.Close(unix.Stdin))
	c := &completions{}
	fd, err := c.descriptor(e)
	require.NoError(t, unix.Dup3(input, unix.Stdin, 0))
	require.NoError(t, unix.Close(input))
	require.NoError(t, err)
	c.add(1)
	require.True(t, readable(t, fd))
	require.NoError(t, unix.Close(fd))
	c.end()
}
