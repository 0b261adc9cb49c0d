package samehost

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// stateListen is the state of a listening socket in /proc/net/tcp.
const stateListen = "0A"

// ListensOn reports whether the process listens on a TCP port, in this network namespace. known is false where its descriptors
// cannot be seen.
func (p *Process) ListensOn(port int) (listens, known bool) {
	folder := fmt.Sprintf("/proc/%d/fd", p.id)
	files, err := os.ReadDir(folder)
	if err != nil || !p.Lives() { // the id may be another process's
		return false, false
	}
	sockets := listening(port)
	for _, file := range files {
		name, err := os.Readlink(filepath.Join(folder, file.Name()))
		if err == nil && slices.Contains(sockets, name) {
			return true, true
		}
	}
	return false, true
}

// listening are the sockets that listen on a port, as /proc names them.
func listening(port int) (sockets []string) {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line) // number, local address, remote address, state, ..., inode
			if len(fields) < 10 || fields[3] != stateListen {
				continue
			}
			at := fields[1][strings.LastIndexByte(fields[1], ':')+1:]
			if n, err := strconv.ParseUint(at, 16, 16); err == nil && int(n) == port {
				sockets = append(sockets, "socket:["+fields[9]+"]")
			}
		}
	}
	return sockets
}
