package hostmem

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"kvferry/core/clock"
	"kvferry/core/hostmem/hostmemtest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const page = 4096

func mapped(t testing.TB, length int) []byte {
	t.Helper()
	memory, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Munmap(memory) })
	return memory
}

func fill(b []byte, seed byte) {
	for i := range b {
		b[i] = byte(i*7+i>>8) + seed
	}
}

// protect takes away the access to memory, as unmapping does, but the address is not used again.
func protect(t testing.TB, b []byte, access int) {
	t.Helper()
	require.NoError(t, unix.Mprotect(b, access))
}

// withHandler installs another handler for SIGSEGV and SIGBUS until the test ends.
func withHandler(t *testing.T, handler uintptr) {
	for _, s := range []unix.Signal{unix.SIGSEGV, unix.SIGBUS} {
		var before sigaction
		act := func(now, old *sigaction) {
			_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(now)),
				uintptr(unsafe.Pointer(old)), unsafe.Sizeof(before.mask), 0, 0)
			require.Zero(t, errno)
		}
		act(&sigaction{handler: handler}, &before)
		t.Cleanup(func() { act(&before, nil) })
	}
	answer.Store(0)
	sigbus.Store(0)
}

// ways are all to copy: a plain copy of what was seen is made by the second of two calls.
var ways = map[string]func(dst, src uintptr, length uint64) error{
	"at first": func(dst, src uintptr, length uint64) error {
		var c Copier
		return c.Copy(dst, src, length)
	},
	"seen": func(dst, src uintptr, length uint64) error {
		c := Copier{fresh: true, trusted: true, now: Now()}
		c.now.Note(dst, length, Writing)
		c.now.Note(src, length, Reading)
		return c.Copy(dst, src, length)
	},
	"pipe": copyThroughPipe,
}

func TestEveryWayCopiesAsMemmoveDoes(t *testing.T) {
	const size = 300 << 10
	memory := mapped(t, size)
	for name, way := range ways {
		for range 200 {
			length := rand.IntN(size/2) >> rand.IntN(17)
			dst, src := rand.IntN(size-length), rand.IntN(size-length)
			fill(memory, byte(length))
			want := slices.Clone(memory)
			copy(want[dst:dst+length], memory[src:src+length])
			require.NoError(t, way(AddressOf(memory[dst:]), AddressOf(memory[src:]), uint64(length)))
			require.True(t, bytes.Equal(want, memory), "%s: %d bytes from %d to %d", name, length, src, dst)
		}
	}
}

func TestWhatCannotBeTouchedIsAnErrorInEveryWay(t *testing.T) {
	good, gone, constant := mapped(t, 64<<10), mapped(t, 64<<10), mapped(t, 64<<10)
	protect(t, gone[32<<10:], unix.PROT_NONE)
	protect(t, constant, unix.PROT_READ)
	for name, way := range ways {
		for _, length := range []int{64, page, 40 << 10} {
			within := 64<<10 - length
			for what, copies := range map[string][2]uintptr{
				"source":      {AddressOf(good), AddressOf(gone[within:])},
				"destination": {AddressOf(gone[within:]), AddressOf(good)},
				"read-only":   {AddressOf(constant), AddressOf(good)},
				"nowhere":     {0xdead_0000_0000_0000, AddressOf(good)},
			} {
				err := way(copies[0], copies[1], uint64(length))
				require.ErrorIs(t, err, syscall.EFAULT, "%s, %s, %d bytes", name, what, length)
			}
		}
	}
}

func TestMemoryThatIsGoneIsFoundOutWithoutASignalWhereGosHandlerIsReplaced(t *testing.T) {
	memory, good := mapped(t, page), mapped(t, page)
	var c Copier
	require.NoError(t, c.Copy(AddressOf(memory), AddressOf(good), page), "it was there a moment ago")
	withHandler(t, 0) // the signal would end the process
	require.NoError(t, unix.Munmap(memory))
	c.Renew()
	require.ErrorIs(t, c.Copy(AddressOf(memory), AddressOf(good), page), syscall.EFAULT)
	require.ErrorIs(t, c.Copy(AddressOf(good), AddressOf(memory), page), syscall.EFAULT)
	require.ErrorIs(t, c.Fill(AddressOf(memory), make([]byte, 64)), syscall.EFAULT)
	require.False(t, Readable(AddressOf(memory), uint64(len(memory))))
}

func TestASystemThatForbidsCopiesBetweenProcessesIsCopedWith(t *testing.T) {
	forbidden.Store(true)
	defer forbidden.Store(false)
	dst, src := mapped(t, page), mapped(t, page)
	fill(src, 1)
	require.NoError(t, copyBySyscalls(AddressOf(dst), AddressOf(src), page))
	require.Equal(t, src, dst)
	require.True(t, Readable(AddressOf(src), uint64(len(src))))
	protect(t, src, unix.PROT_NONE)
	require.False(t, Readable(AddressOf(src), uint64(len(src))))
}

func TestOnlyAHandlerOfThisLibrarysRuntimeIsGos(t *testing.T) {
	require.True(t, handlersAreGos(clock.Now(), -1))
	for what, handler := range map[string]uintptr{
		"none":               0,
		"ignored":            1,
		"of another library": AddressOf(mapped(t, page)),
		"a function of ours": reflect.ValueOf(fill).Pointer(),
		"amid Go's":          goHandler.Load() + 1,
	} {
		require.False(t, isGos(handler), what)
	}
}

func TestAPageThatDoesNotComeHoldsOnlyItsCopyUp(t *testing.T) {
	for _, length := range []int{64, 64 << 10} {
		for name, f := range map[string]func(missing, good []byte) error{
			"source": func(missing, good []byte) error {
				var c Copier
				return c.Copy(AddressOf(good), AddressOf(missing), uint64(len(good)))
			},
			"destination": func(missing, good []byte) error {
				var c Copier
				return c.Copy(AddressOf(missing), AddressOf(good), uint64(len(good)))
			},
			"destination of Go memory": func(missing, good []byte) error {
				var c Copier
				return c.Fill(AddressOf(missing), make([]byte, len(good)))
			},
			"pipe": func(missing, good []byte) error {
				return copyThroughPipe(AddressOf(missing), AddressOf(good), uint64(len(good)))
			},
			"readable": func(missing, good []byte) error {
				if !Readable(AddressOf(missing), 1) {
					return syscall.EFAULT
				}
				return nil
			},
		} {
			t.Run(fmt.Sprintf("%s, %d bytes", name, length), func(t *testing.T) {
				missing, good := hostmemtest.New(t, length), mapped(t, length)
				done := make(chan error)
				go func() { done <- f(missing.Memory, good) }()
				missing.AwaitFault(t)
				missing.Collect()
				missing.Release(t)
				require.NoError(t, <-done)
			})
		}
	}
}

func TestMemoryWhosePagesDoNotComeIsTheHosts(t *testing.T) {
	missing, good, gone := hostmemtest.New(t, (mostUnanswered+1)*page), mapped(t, page), mapped(t, page)
	protect(t, gone, unix.PROT_NONE)
	for i := range mostUnanswered {
		require.True(t, IsHosts(AddressOf(good), time.Minute))
		require.False(t, IsHosts(AddressOf(gone), time.Minute))
		require.True(t, IsHosts(AddressOf(missing.Memory[i*page:]), time.Millisecond))
		missing.AwaitFault(t)
	}
	require.True(t, IsHosts(AddressOf(missing.Memory[mostUnanswered*page:]), time.Minute), "no more are waited for")
	require.False(t, IsHosts(page, time.Minute), "where nothing is mapped")
	missing.Collect()
	missing.Release(t)
	require.Eventually(t, func() bool { return unanswered.Load() == 0 }, time.Minute, time.Millisecond)
	require.False(t, IsHosts(AddressOf(gone), time.Minute))
}

func TestOnlyMemoryThatIsPresentIsCopiedAtOnce(t *testing.T) {
	const length = 64
	missing, good, gone := hostmemtest.New(t, length), mapped(t, page), mapped(t, page)
	fill(good, 1)
	protect(t, gone, unix.PROT_NONE)
	Forget(AddressOf(gone), page) // other memory may have been there a moment ago
	for name, absent := range map[string][]byte{"page that does not come": missing.Memory, "page without access": gone} {
		var c Copier
		for _, copies := range [][2][]byte{{absent, good}, {good, absent}} {
			copied, err := c.CopyPresent(AddressOf(copies[0]), AddressOf(copies[1]), length)
			require.NoError(t, err, name)
			require.False(t, copied, name)
		}
	}
	var c Copier
	for _, how := range []string{"resident", "seen"} {
		copied, err := c.CopyPresent(AddressOf(good[length:]), AddressOf(good), length)
		require.NoError(t, err, how)
		require.True(t, copied, how)
		require.Equal(t, good[:length], good[length:2*length], how)
	}
	withHandler(t, 0)
	c.Renew()
	copied, err := c.CopyPresent(AddressOf(good[2*length:]), AddressOf(good), length)
	require.NoError(t, err)
	require.True(t, copied, "by a system call")
}
