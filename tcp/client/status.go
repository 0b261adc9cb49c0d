package client

import (
	"kvferry/core"
	"kvferry/core/status"
	"kvferry/tcp/wire"
)

// stalledError is why a carrier gives up when nothing has moved for so long.
func stalledError(segment string, oldest *piece, limit limit) error {
	return status.Errorf(status.Socket, "segment %q: %w for %v while %d bytes at %#x were in flight",
		segment, errStalled, limit, oldest.length, oldest.remote)
}

// offerRefusals are what status codes say of offers.
var offerRefusals = map[uint32]error{
	wire.StatusRevoked: core.ErrRevoked, wire.StatusNotOffered: core.ErrNotOffered, wire.StatusOfferUsed: core.ErrOfferUsed,
}

// judgeStatus looks at the status frame that answers a piece. An error means that the connection is of no more use.
func judgeStatus(segment string, frame []byte, piece *piece) error {
	code, err := wire.ParseStatus(frame)
	addr, length := piece.remoteRange()
	switch {
	case err != nil:
		return status.Errorf(status.Socket, "segment %q: %w", segment, err)
	case code == wire.StatusOK:
		return nil
	case code == wire.StatusOutOfReach && piece.byAddress:
		piece.plain = true
		return nil
	case code == wire.StatusFailed:
		piece.fatal = status.Errorf(status.Endpoint, "segment %q: the peer could not move %d bytes to or from its device at %#x; its log tells why",
			segment, piece.length, addr)
	case code == wire.StatusInaccessible:
		piece.fatal = status.Errorf(status.AddressNotRegistered,
			"segment %q: the peer has registered memory %#x+%d, but cannot access it: it was unmapped or protected, or its file cut short",
			segment, addr, length)
	case offerRefusals[code] != nil && piece.strided != nil:
		piece.fatal = status.Errorf(status.AddressNotRegistered, "segment %q: %#x+%d refused: %w", segment, addr, length, offerRefusals[code])
	case code != wire.StatusRejected && code != wire.StatusForbidden:
		piece.fatal = status.Errorf(status.Endpoint, "segment %q: the peer failed with code %d at %#x+%d",
			segment, code, addr, length)
	}
	piece.forbidden = code == wire.StatusForbidden
	piece.refusals++
	return errRefused
}
