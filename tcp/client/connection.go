package client

import (
	"errors"
	"time"

	"kvferry/core/metadata"
	"kvferry/core/security"
	"kvferry/core/trace"
	"kvferry/tcp/samehost"
	"kvferry/tcp/sockio"
)

// connection is a data connection, and what is known of the engine at the other end.
type connection struct {
	*sockio.Socket
	peer         former
	owner        *metadata.Descriptor // of the engine at the other end
	target       string               // that engine, as targetKey names it
	acknowledged bool                 // it is spoken to in version 2
	strided      bool                 // it takes strided requests

	number  uint64            // of the connection in its hello; 0 for a connection without one
	there   time.Duration     // the other engine is there since then at the latest, by clock.SinceBoot
	process *samehost.Process // of the other engine, on one host; nil where its memory is out of reach
	permit  *samehost.Permit  // for the target to copy from this process; nil for none
	proven  security.Peer     // who is at the other end, under TLS
	trace   *trace.Connection // records its requests; nil for none
	free    func()            // gives its descriptors back; nil for a connection that claims none
}

func (c *connection) destination() destination {
	to := destination{owner: c.owner, target: c.target, there: c.there}
	if c.strided {
		to.runs = mostStridedRun
		if c.IsLocal() {
			to.runs = mostLocalRun
		}
	}
	return to
}

// Close: see sockio.Socket.
func (c *connection) Close() error {
	err := c.Socket.Close()
	c.giveBack()
	return err
}

// Reset: see sockio.Socket.
func (c *connection) Reset() {
	c.Socket.Reset()
	c.giveBack()
}

func (c *connection) giveBack() {
	if c.free != nil {
		c.free()
	}
}

// discard closes the connection. What the kernel still has of it does not arrive.
func (c *connection) discard() {
	c.Reset()
	c.release()
}

// release gives back what is known of the other process, when nobody copies to or from it any more.
func (c *connection) release() {
	_ = errors.Join(c.process.Close(), c.permit.Close())
	c.process, c.permit = nil, nil
}
