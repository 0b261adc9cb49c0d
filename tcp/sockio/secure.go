package sockio

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"

	"kvferry/core/hostmem"

	"golang.org/x/sys/unix"
)

// A Socket under TLS. The two directions make no system call of their own then:
//
//  1. encrypt makes records of the vectors. Long ones are encrypted straight from where they are; short ones are gathered
//     first. One system call sends several records. The bytes of a record count when the socket has taken all of it.
//  2. decrypt has crypto/tls put the plaintext straight into long vectors. For short ones a record is decrypted into a buffer,
//     and copied from there.
//  3. Application memory is touched by crypto/tls itself only where core/hostmem allows plain copies. Other memory is copied by
//     system calls, into or out of a buffer of the library.
//
// Nothing of this waits for the socket: Inner is what reads and writes records.
type secure struct {
	socket *Socket
	inner  *Inner
	conn   *tls.Conn

	// The sending direction.
	reader  hostmem.Copier
	gather  [maxPlaintext]byte
	sealing []byte // what seal encrypts
	seal    func()
	sealErr error    // what seal came to
	waiting []record // that the socket has not taken completely, oldest first

	// The receiving direction.
	writer    hostmem.Copier
	scratch   [maxPlaintext]byte
	spare     []byte // plaintext in scratch that has not been delivered
	opening   []byte // where open decrypts to
	open      func()
	delivered uint64 // bytes that crypto/tls has given
	opened    int    // what open came to
	openErr   error
}

// record is a record that was made, by its plaintext and its place in the stream of records.
type record struct {
	bytes uint64
	end   uint64
}

const (
	maxPlaintext = 16 << 10 // of a record
	// straight is the length from which on a vector is encrypted in place, or decrypted into its place: a shorter one shares
	// a record with others.
	straight = 4 << 10
	// maxMoved bounds what one call moves, so that the owner can settle what has come while more comes.
	maxMoved = 512 << 10
)

// NewSecure is New for a connection on which TLS has begun: the handshake of conn, over inner, is done.
func NewSecure(inner *Inner, conn *tls.Conn, p *Processors) (*Socket, error) {
	s, err := newSocket(inner.conn, p)
	if err != nil {
		inner.forgetFile()
		return nil, err
	}
	c := &secure{socket: s, inner: inner, conn: conn}
	c.seal, c.open = c.sealOne, c.openOne
	inner.fd = s.socket
	s.in.file, inner.file = inner.file, -1
	s.in.coded, s.out.coded = c.decrypt, c.encrypt
	s.secure = c
	return s, nil
}

// encrypt is the call of the sending direction. Records that the socket does not take count in a later call: the caller
// gives the same bytes again then, and they are not encrypted again.
func (c *secure) encrypt() {
	d := &c.socket.out
	d.begin()
	c.reader.Renew()
	waited := len(c.waiting) > 0
	all, errno := c.inner.flush()
	sent := c.left()
	switch {
	case errno != 0:
		d.errno = errno
		return
	case sent > 0:
		d.n = uintptr(sent)
		return
	case waited || !all:
		d.errno = unix.EAGAIN
		return
	}
	err := c.sealAll(d.vectors())
	_, errno = c.inner.flush()
	sent = c.left()
	d.n = uintptr(sent)
	switch {
	case sent > 0:
	case errno != 0:
		d.errno = errno
	case len(c.waiting) > 0:
		d.errno = unix.EAGAIN
	case errors.Is(err, unix.EFAULT):
		d.errno = unix.EFAULT
	default:
		d.err = err
	}
}

// sealAll makes records of vectors until the socket takes no more.
func (c *secure) sealAll(v []Vector) error {
	at := cursor{rest: v}
	var sealed uint64
	for full := false; !full && sealed < maxMoved && at.more(); {
		n, err := c.layOut(&at)
		if err != nil {
			return err
		}
		sealed += n
		c.inner.setHold(at.more() && sealed < maxMoved)
		if err := hostmem.Guard(c.seal); err != nil {
			return err
		}
		if c.sealErr != nil {
			return c.sealErr
		}
		var end uint64
		end, _, full = c.inner.progress()
		c.waiting = append(c.waiting, record{n, end})
	}
	return nil
}

// left takes the records that the socket has taken off the list, and returns how many bytes they have.
func (c *secure) left() (bytes uint64) {
	_, taken, _ := c.inner.progress()
	n := 0
	for n < len(c.waiting) && c.waiting[n].end <= taken {
		bytes += c.waiting[n].bytes
		n++
	}
	c.waiting = c.waiting[:copy(c.waiting, c.waiting[n:])]
	return bytes
}

// layOut finds the plaintext of the next record.
func (c *secure) layOut(at *cursor) (length uint64, err error) {
	base, rest := at.place()
	if c.isStraight(&c.socket.out, &c.reader, base, rest) {
		length = min(rest, maxPlaintext)
		c.sealing = hostmem.At(base, length)
		at.advance(length)
		return length, nil
	}
	for length < maxPlaintext && at.more() {
		base, rest = at.place()
		if length > 0 && c.isStraight(&c.socket.out, &c.reader, base, rest) {
			break
		}
		part := min(rest, maxPlaintext-length)
		to := c.gather[length : length+part]
		if c.socket.out.ours.Holds(base) {
			copy(to, hostmem.At(base, part))
		} else if err := c.reader.Copy(hostmem.AddressOf(to), base, part); err != nil {
			if length > 0 {
				break // the next call meets it first
			}
			return 0, err
		}
		length += part
		at.advance(part)
	}
	c.sealing = c.gather[:length]
	return length, nil
}

// isStraight reports whether crypto/tls may touch the memory itself, and it is worth a record of its own. Where the
// memory was not touched lately it brings in what the next records need, too.
func (c *secure) isStraight(d *direction, copier *hostmem.Copier, base uintptr, length uint64) bool {
	return length >= straight && (d.ours.Holds(base) || copier.MayTouch(base, min(length, maxPlaintext), d.access) ||
		copier.BringIn(base, min(length, maxMoved), d.access))
}

func (c *secure) sealOne() { _, c.sealErr = c.conn.Write(c.sealing) }

// decrypt is the call of the receiving direction.
func (c *secure) decrypt() {
	d := &c.socket.in
	d.begin()
	c.writer.Renew()
	at := cursor{rest: d.vectors()}
	var moved uint64
	for moved < maxMoved && at.more() {
		n, err := c.deliver(&at)
		moved += n
		if err == nil {
			continue
		}
		if moved == 0 { // otherwise the next call meets it
			c.fail(d, err)
		}
		break
	}
	d.n = uintptr(moved)
	if c.inner.file >= 0 {
		d.file, c.inner.file = c.inner.file, -1
	}
}

// deliver puts some plaintext where it belongs, or takes a record apart for the next call of it.
func (c *secure) deliver(at *cursor) (moved uint64, err error) {
	base, rest := at.place()
	switch {
	case len(c.spare) > 0:
		part := c.spare[:min(uint64(len(c.spare)), rest)]
		if c.socket.in.ours.Holds(base) {
			copy(hostmem.At(base, uint64(len(part))), part)
		} else if err := c.writer.Fill(base, part); err != nil {
			return 0, err
		}
		moved, c.spare = uint64(len(part)), c.spare[len(part):]
	case c.isStraight(&c.socket.in, &c.writer, base, rest):
		c.opening = hostmem.At(base, min(rest, maxPlaintext))
		moved, err = c.openSome()
	default:
		c.opening = c.scratch[:]
		var n uint64
		n, err = c.openSome()
		c.spare = c.scratch[:n]
		if n > 0 {
			err = nil
		}
	}
	at.advance(moved)
	return moved, err
}

// openSome decrypts into opening. Where it returns bytes and an error, the error comes again.
func (c *secure) openSome() (n uint64, err error) {
	c.opened, c.openErr = 0, nil
	if err := hostmem.Guard(c.open); err != nil {
		return 0, err
	}
	c.delivered += uint64(c.opened)
	return uint64(c.opened), c.openErr
}

func (c *secure) openOne() { c.opened, c.openErr = c.conn.Read(c.opening) }

// fail sets the outcome of a call that has moved nothing.
func (c *secure) fail(d *direction, err error) {
	switch {
	case err == errAgain:
		c.delivered = c.inner.arrived.whole // all that is whole was understood, whatever it was
		d.errno = unix.EAGAIN
	case errors.Is(err, unix.EFAULT):
		d.errno = unix.EFAULT
	case c.inner.recvErrno != 0:
		d.errno = c.inner.recvErrno
	case err == io.EOF:
		d.err = err
	default:
		d.err = fmt.Errorf("TLS: %w", err)
	}
}

// buffers reports whether there may be plaintext that the socket has nothing to do with any more.
func (c *secure) buffers() bool { return len(c.spare) > 0 || c.inner.arrived.whole > c.delivered }

// end ends the stream to the peer by TLS. It does nothing when the last record has not left completely.
func (c *secure) end() error {
	if len(c.waiting) > 0 {
		return nil
	}
	return c.conn.CloseWrite()
}

// flushed reports whether nothing is held any more, or nothing ever will be sent.
func (c *secure) flushed() bool {
	all, errno := c.inner.flush()
	return all || errno != 0
}

// cursor is a place in a list of vectors, which stay as they are.
type cursor struct {
	rest   []Vector
	offset uint64 // in the first of them
}

// more reports whether a byte follows, and moves to its vector.
func (c *cursor) more() bool {
	for len(c.rest) > 0 && c.offset >= c.rest[0].Length {
		c.rest, c.offset = c.rest[1:], 0
	}
	return len(c.rest) > 0
}

// place is the memory that follows in the vector; more has returned true.
func (c *cursor) place() (base uintptr, length uint64) {
	return c.rest[0].Base + uintptr(c.offset), c.rest[0].Length - c.offset
}

func (c *cursor) advance(n uint64) { c.offset += n }
