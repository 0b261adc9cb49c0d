package core

import (
	"testing"
	"time"

	"kvferry/core/metadata"
	"kvferry/core/metadata/metadatatest"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// The steps here are those of goroutines that overtake one another in ways that no test can bring about from outside.

func startBare(t *testing.T) *Engine {
	t.Helper()
	e, err := Start(Options{Name: "127.0.0.1", Config: DefaultConfig(), Log: zap.NewNop()}, metadatatest.NewDirectory().Store())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// added is a task of one byte that is added to a batch with a notification.
func added(t *testing.T, b *Batch) *Task {
	t.Helper()
	s := newSubmission(b, 1)
	s.tasks[0].Request = Request{Local: 0x1000, Length: 1}
	require.NoError(t, (&distribution{submission: s, engine: b.engine, haveTransport: true}).eachTask(0, 1))
	require.NoError(t, b.add(s, &pendingNotification{to: LocalSegment, msg: metadata.Notification{Name: "n"}}))
	return &s.tasks[0]
}

func TestNotificationStaysWhenMoreIsSubmittedAsTheLastTaskEnds(t *testing.T) {
	b, err := startBare(t).AllocateBatch(2)
	require.NoError(t, err)
	task := added(t, b)
	b.ending.Add(-1) // the task before it has ended, and asks for what is to be sent
	b.ending.Add(1)
	_, messages := b.allEnded()
	require.Empty(t, messages)
	b.settle(task, 1, nil)
	require.True(t, b.wait(time.Minute))
	require.Len(t, b.engine.Notifications(), 1)
}

func TestWaitersStayWhenMoreIsSubmittedAsTheLastTaskEnds(t *testing.T) {
	e := startBare(t)
	require.NoError(t, e.Register(0x1000, 4096, "cpu:0", true)) // never touched
	b, err := e.AllocateBatch(2)
	require.NoError(t, err)
	task := added(t, b)
	calls := make(chan struct{}, 2)
	b.OnDone(func() { calls <- struct{}{} })
	b.finishAll() // of the task before it
	require.Empty(t, calls)
	require.Len(t, b.pins, 1, "the memory is in use")
	b.settle(task, 1, nil)
	<-calls
	require.Empty(t, b.pins)
	b.finishAll()
	require.Empty(t, calls, "a waiter is called once")
}

func TestAbortOfABatchThatIsDoneConcernsNothingLater(t *testing.T) {
	b, err := startBare(t).AllocateBatch(2)
	require.NoError(t, err)
	b.abort(ErrDiscarded)
	task := added(t, b)
	require.NoError(t, (&Work{owner: b.all()[0]}).Aborted())
	require.NoError(t, b.deliveryContext().Err())
	b.settle(task, 1, nil)
	require.True(t, b.wait(time.Minute))
}

func TestClosedEngineStartsNothing(t *testing.T) {
	e := startBare(t)
	require.True(t, e.spawn(func() {}))
	require.NoError(t, e.Close())
	require.False(t, e.spawn(func() { t.Error("it was started") }))
	done := false
	e.deliver(e.ctx, []pendingNotification{{}}, func() { done = true })
	require.True(t, done, "the last task ends all the same")
}
