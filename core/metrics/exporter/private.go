package exporter

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// How `kvferry top` finds the engines of its user on a host:
//
//  1. There is a folder that belongs to the user alone: kvferry-UID in /tmp, or what KVFERRY_SOCKET_DIR names.
//  2. Each process with engines has a socket in it, whose name begins with the number of the process. It answers like the socket
//     of KVFERRY_METRICS_LISTEN.
//  3. A process that was killed leaves its socket behind. The next process that makes one there removes it.

// The values of KVFERRY_SOCKET_DIR that name no folder.
const (
	SocketsOff  = "off"
	SocketsAuto = "auto"
)

const (
	socketSuffix = ".sock"
	// maxSwept is how many entries of the folder a process looks at, for sockets that were left behind.
	maxSwept = 256
)

// privately is the key among servers of the socket in the private folder.
const privately = "private"

// AttachPrivately shows an engine at the process's socket in a folder that only this user can open: see above. folder is
// SocketsOff, SocketsAuto, or a path whose last part is made if it does not exist. detach is that of Attach. A process has one
// such socket: the folder of its first engine counts. If it cannot be made, engines work without; the log says so once, and
// detach does nothing.
func AttachPrivately(folder string, source Source, log *zap.Logger) (detach func()) {
	if folder == SocketsOff {
		return func() {}
	}
	detach, err := attach(privately, source, func() (*server, error) {
		l, err := listenIn(folder)
		if err != nil {
			return nil, err
		}
		return serve(l), nil
	})
	if err != nil {
		tellOnce.Do(func() {
			log.Info("kvferry top will not find the engines of this process", zap.String("KVFERRY_SOCKET_DIR", folder), zap.Error(err))
		})
		return func() {}
	}
	return detach
}

var tellOnce sync.Once

// PrivateFolder is the path of the folder.
func PrivateFolder(folder string) string {
	if folder == SocketsAuto {
		return "/tmp/kvferry-" + strconv.Itoa(os.Geteuid()) // not TMPDIR: `kvferry top` may have another one
	}
	return folder
}

// listenIn makes the process's socket in the folder, and removes sockets that others have left behind there.
func listenIn(folder string) (listener, error) {
	folder = PrivateFolder(folder)
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, status.Errorf(status.Socket, "%w", err)
	}
	opened, err := openPrivate(folder)
	if err != nil {
		return nil, status.Errorf(status.Socket, "%w", err)
	}
	defer opened.Close()
	sweep(opened)
	var random [4]byte // processes in different containers may have one number
	_, _ = rand.Read(random[:])
	return listenUnix(filepath.Join(folder, fmt.Sprintf("%d-%s%s", os.Getpid(), hex.EncodeToString(random[:]), socketSuffix)))
}

// openPrivate opens a folder. It fails for one that another user owns or can open, and for a link.
func openPrivate(path string) (*os.File, error) {
	folder, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := folder.Stat()
	if err == nil {
		if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
			err = fmt.Errorf("%s belongs to user %d, and not to user %d", path, owner, os.Geteuid())
		} else if info.Mode().Perm()&0o077 != 0 {
			err = fmt.Errorf("%s is open to other users: its mode is %#o, and not 0700", path, info.Mode().Perm())
		}
	}
	if err != nil {
		return nil, errors.Join(err, folder.Close())
	}
	return folder, nil
}

// sweep removes sockets from the folder that nobody listens at. A socket has a name of its own as long as it exists, so none is
// mistaken for another one. An error leaves it to the next process.
func sweep(folder *os.File) {
	names, err := folder.Readdirnames(maxSwept)
	if err != nil && err != io.EOF {
		return
	}
	for _, name := range names {
		path := filepath.Join(folder.Name(), name)
		if hidden := strings.Contains(name, socketSuffix+"."); hidden && !isOld(path) {
			continue // it may not listen yet
		} else if !hidden && !strings.HasSuffix(name, socketSuffix) {
			continue
		}
		if isLeftBehind(path) {
			_ = os.Remove(path)
		}
	}
}

// settledAge is how old a socket under a hidden name is that will not be listened at any more: its process was killed.
const settledAge = time.Minute

func isOld(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && time.Since(info.ModTime()) > settledAge
}
