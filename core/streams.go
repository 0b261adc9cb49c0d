package core

import "golang.org/x/sys/unix"

// guardStandardStreams gives the standard streams that the application has closed to the null device. Otherwise a socket of
// the engine might get the number 2, and peers would receive what anybody writes to standard error.
func guardStandardStreams() {
	for stream := unix.Stdin; stream <= unix.Stderr; stream++ {
		if _, err := unix.FcntlInt(uintptr(stream), unix.F_GETFD, 0); err != unix.EBADF {
			continue
		}
		null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil && null > unix.Stderr { // another thread was faster
			_ = unix.Close(null)
		}
	}
}
