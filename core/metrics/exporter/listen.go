package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"kvferry/core/status"
)

// resolveTimeout is how long the name of the host may take to be resolved, and an owner of a socket to accept a connection.
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

// listenUnix makes a socket that only processes of this user can open. One that a process has left behind is replaced.
func listenUnix(path string) (listener, error) {
	if path == "" {
		return nil, status.Errorf(status.InvalidArgument, "unix: needs a path")
	}
	l, err := listenPrivately(path)
	if errors.Is(err, syscall.EADDRINUSE) && isLeftBehind(path) {
		if err = os.Remove(path); err == nil {
			l, err = listenPrivately(path)
		}
	}
	if err != nil {
		return nil, status.Errorf(status.Socket, "%w", err)
	}
	return l, nil
}

// listenPrivately makes the socket under another name first: nobody can connect before it has its permissions.
func listenPrivately(path string) (*unixListener, error) {
	hidden := path + "." + strconv.Itoa(os.Getpid())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // of the hidden name
	if err = os.Chmod(hidden, 0o600); err == nil {
		err = os.Link(hidden, path)
	}
	if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("listen unix %s: %w", path, syscall.EADDRINUSE)
	}
	if err = errors.Join(err, os.Remove(hidden)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &unixListener{l, path}, nil
}

// unixListener removes its socket when it is closed.
type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		err = os.Remove(l.path)
	}
	return err
}

// isLeftBehind reports whether a path is a socket that nobody listens at.
func isLeftBehind(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	conn, err := net.DialTimeout("unix", path, resolveTimeout)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
