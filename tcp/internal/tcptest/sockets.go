package tcptest

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// OwnSocket is one end of a connection that this process has.
type OwnSocket struct {
	File     int
	Accepted bool
}

// SocketsOf are the ends of the connections to a port of this process that it has.
func SocketsOf(port int) (found []OwnSocket) {
	all, _ := os.ReadDir("/proc/self/fd")
	for _, one := range all {
		file, _ := strconv.Atoi(one.Name())
		local, err := unix.Getsockname(file)
		if err != nil {
			continue
		}
		remote, err := unix.Getpeername(file)
		if err == nil && (portOf(local) == port || portOf(remote) == port) {
			found = append(found, OwnSocket{file, portOf(local) == port})
		}
	}
	return found
}

func portOf(a unix.Sockaddr) int {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}
