package exporter

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"kvferry/core/shut"
	"kvferry/core/status"

	"golang.org/x/sys/unix"
)

// connectTimeout is how long the owner of a socket may take to accept a connection, by which it is found out whether there is one.
const connectTimeout = 5 * time.Second

// listenUnix makes a socket that only processes of this user, and of root, can open. One that a process has left behind is
// replaced.
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

// listenPrivately makes the socket under another name first: nobody can connect before it has its permissions, and before it
// listens nobody takes it for one that was left behind.
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

// unixListener accepts connections of this user and of root alone, and removes its socket when it is closed.
type unixListener struct {
	*net.UnixListener
	path string
}

// Addr is where peers find the socket.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Accept resets connections of other users: a program may have opened the socket's permissions, or its folder's.
func (l *unixListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if isTrusted(conn) {
			return conn, nil
		}
		_ = shut.Abandon(conn)
	}
}

// isTrusted reports whether the process that has made a connection is of this user or of root.
func isTrusted(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || peerErr != nil {
		return false
	}
	return trusts(int(peer.Uid))
}

func trusts(user int) bool { return user == os.Geteuid() || user == 0 }

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
	conn, err := net.DialTimeout("unix", path, connectTimeout)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
