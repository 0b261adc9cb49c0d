package exporter

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"kvferry/core/status"
)

// resolveTimeout is how long the name of the host may take to be resolved.
const resolveTimeout = 5 * time.Second

// listen listens at an address of Attach.
func listen(address string) (listener, error) {
	address = strings.ReplaceAll(address, "%p", strconv.Itoa(os.Getpid()))
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return listenUnix(path)
	}
	host, ports, err := net.SplitHostPort(address)
	if err != nil {
		return nil, status.Errorf(status.InvalidArgument, "%q is neither HOST:PORT nor unix:PATH", address)
	}
	first, last, err := portRange(ports)
	if err != nil {
		return nil, err
	}
	for port := first; ; port++ {
		l, err := listenTCP(host, port)
		if err == nil || port == last || !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
	}
}

// portRange is the ports of "9400" or "9400-9407".
func portRange(text string) (first, last int, err error) {
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	low, lowErr := strconv.ParseUint(from, 10, 16)
	high, highErr := strconv.ParseUint(to, 10, 16)
	if lowErr != nil || highErr != nil || low > high || isRange && low == 0 {
		return 0, 0, status.Errorf(status.InvalidArgument, "%q is neither a port nor a range of ports", text)
	}
	return int(low), int(high), nil
}

func listenTCP(host string, port int) (listener, error) {
	ctx, done := context.WithTimeout(context.Background(), resolveTimeout)
	defer done()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return nil, status.Errorf(status.Socket, "%w", err)
	}
	return l.(*net.TCPListener), nil
}
