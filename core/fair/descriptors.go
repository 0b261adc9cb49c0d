package fair

import "golang.org/x/sys/unix"

// ShareOfDescriptors is one of so many parts of the file descriptors that the process may have open now: the soft limit
// RLIMIT_NOFILE. It is 1 at least.
func ShareOfDescriptors(parts int) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		limit.Cur = 1024 // Linux's default
	}
	return max(1, int(min(limit.Cur, 1<<30)/uint64(parts)))
}
