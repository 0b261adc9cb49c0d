package core

import "kvferry/core/metrics"

// Failure is why a batch has failed.
type Failure struct {
	Reason  metrics.Reason
	Index   int     // of the first request that failed, in the order of their submission; -1 where the batch failed as a whole
	Request Request // that request, if there is one
	Err     error   // the reason alone; Batch.Err describes the request, too
}

// failure is what a batch keeps of the first failure.
type failure struct {
	reason metrics.Reason
	task   *Task // nil where the batch failed as a whole
	err    error
}

// Failure says why the batch has failed; ok is false while no request of it has. It takes a nanosecond for each request.
func (b *Batch) Failure() (found Failure, ok bool) {
	b.mu.Lock()
	first := b.failure
	b.mu.Unlock()
	if first == nil {
		return found, false
	}
	found = Failure{Reason: first.reason, Index: -1, Err: first.err}
	if first.task != nil {
		found.Index, found.Request = b.indexOf(first.task), first.task.Request
	}
	return found, true
}

// indexOf is the id of a task of the batch.
func (b *Batch) indexOf(task *Task) int {
	for _, s := range b.all() {
		for i := range s.tasks {
			if &s.tasks[i] == task {
				return s.first + i
			}
		}
	}
	return -1
}
