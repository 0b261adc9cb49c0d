package sockio

import (
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
)

const (
	// localBuffer is the size of the socket buffers of a Unix-domain socket, in bytes, where the system allows it.
	localBuffer = 1 << 20
	// onHostBuffer is how many bytes may wait to be sent over TCP to another process of this host. The kernel takes twice as much,
	// for what it keeps beside them. By itself it lets some MiB wait, and with several connections the bytes have left the
	// processors' caches when they are received. There is no delay here for which more would have to be under way.
	onHostBuffer = 384 << 10
)

// boundBuffer keeps what waits to be sent to this host in the caches. Where the system does not allow the size, the kernel chooses
// one: a smaller one is slower.
func boundBuffer(c *net.TCPConn) error {
	if !staysOnHost(c) || largestBuffer() < onHostBuffer {
		return nil
	}
	return c.SetWriteBuffer(onHostBuffer)
}

// staysOnHost reports whether both ends of a connection have the same address. Connections between network namespaces do not.
func staysOnHost(c *net.TCPConn) bool {
	here, isTCP := c.LocalAddr().(*net.TCPAddr)
	there, alsoTCP := c.RemoteAddr().(*net.TCPAddr)
	return isTCP && alsoTCP && here.IP.Equal(there.IP)
}

// largestBuffer is the size up to which the system lets a program set the buffer for sending; 0 where it does not say.
var largestBuffer = sync.OnceValue(func() int {
	text, _ := os.ReadFile("/proc/sys/net/core/wmem_max")
	size, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return size
})
