package sockio

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Descriptors are the file descriptors that connections of one kind may take, of those of the process. All engines of a process
// share them. A nil Descriptors has no limit. Any goroutine may call the methods.
type Descriptors struct {
	limit int64
	taken atomic.Int64
}

// NewDescriptors allows so many descriptors.
func NewDescriptors(limit int) *Descriptors { return &Descriptors{limit: int64(limit)} }

// ShareOfDescriptors is one of so many parts of the descriptors that the process may have open now: the soft limit
// RLIMIT_NOFILE.
func ShareOfDescriptors(parts int) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 / parts // Linux's default
	}
	return int(min(limit.Cur, 1<<30) / uint64(parts))
}

// PerConnection is how many descriptors a connection takes at most while it is up: the socket, an epoll set for each direction
// (see readiness), and the pidfd of a process on this host.
const PerConnection = 4

// Connections is how many connections there are descriptors for.
func (d *Descriptors) Connections() int { return int(max(1, d.limit/PerConnection)) }

// HasRoom reports whether so many descriptors are left.
func (d *Descriptors) HasRoom(n int) bool { return d == nil || d.taken.Load()+int64(n) <= d.limit }

// Take claims descriptors. It returns false where there are not as many left.
func (d *Descriptors) Take(n int) bool {
	if d == nil {
		return true
	}
	if d.taken.Add(int64(n)) > d.limit {
		d.taken.Add(int64(-n))
		return false
	}
	return true
}

// Give returns descriptors.
func (d *Descriptors) Give(n int) {
	if d != nil {
		d.taken.Add(int64(-n))
	}
}
