package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"kvferry/core/fair"
	"kvferry/core/security"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// From a request to its reply: steps 3 and 4 of a request's way.

// answer reads a request and replies to it. It returns what the request came through.
func (s *Server) answer(conn *served) (stream, error) {
	if err := conn.SetReadDeadline(time.Now().Add(s.options.StepTimeout)); err != nil {
		return nil, err
	}
	over, refuse, err := s.secure(context.Background(), conn.TCPConn)
	if err != nil {
		return nil, err
	}
	request, err := readFrame(over, s.options.MaxLength)
	if err != nil {
		return nil, err
	}
	var body []byte
	if refuse {
		s.counts.plain.Add(1)
		s.options.Security.CountPlain(conn.RemoteAddr())
		s.log.Warn("a handshake was refused", zap.Stringer("peer", conn.RemoteAddr()), zap.Stringer("request", request.kind), zap.Error(security.ErrPlain))
		body, err = s.refuse(request)
	} else {
		body, err = s.reply(request, caller{fair.AddrOf(conn.RemoteAddr()), conn.LocalAddr(), isSecure(over)})
	}
	if err != nil {
		return nil, err
	}
	if !refuse {
		s.counts.answered[request.kind].Add(1)
	}
	conn.place.SetRank(fair.Spared)
	if err := conn.SetWriteDeadline(time.Now().Add(s.options.StepTimeout)); err != nil {
		return nil, err
	}
	if _, err := over.Write(encodeFrame(request.kind, request.old, body)); err != nil {
		return nil, err
	}
	err = over.CloseWrite()
	if err == nil && isSecure(over) {
		err = conn.CloseWrite()
	}
	if err != nil && !errors.Is(err, unix.ENOTCONN) { // the peer has reset the connection already, after the answer
		return nil, err
	}
	return over, nil
}

// caller is the peer of a connection.
type caller struct {
	from    netip.Addr
	reached net.Addr // of this engine
	proven  bool     // it has proven to belong to the cluster
}

// reply reads a request's body and gives the JSON of the answer.
func (s *Server) reply(request frame, by caller) ([]byte, error) {
	if request.kind == kindNotify {
		return s.notify(request, by)
	}
	if err := request.discardBody(); err != nil {
		return nil, err
	}
	switch request.kind {
	case kindMetadata:
		return s.descriptor(by), nil
	case kindProbe:
		return s.probe(), nil
	}
	return mustEncode(connectionBody{QPNumbers: []int{}}), nil
}

// descriptor is the engine's own descriptor, as far as it fits the frame, or null.
func (s *Server) descriptor(by caller) []byte {
	d := s.handlers.Descriptor()
	if d == nil {
		return []byte("null")
	}
	if by.proven {
		named := *d
		named.Names = append(slices.Clone(s.handlers.Names), by.reached.String())
		d = &named
	}
	encoded, truncated := d.Encode(s.options.MaxLength - 1)
	if truncated {
		s.log.Warn("the segment descriptor does not fit a handshake frame, peers see the first buffers only",
			zap.Int("buffers", len(d.Buffers)), zap.Int("MC_HANDSHAKE_MAX_LENGTH", s.options.MaxLength))
	}
	return encoded
}

// probe names the engine: the port may have been another engine's before.
func (s *Server) probe() []byte {
	answer := probeBody{Status: "success"}
	if s.handlers.Name != "" {
		answer.Extensions = mustEncode(probeExtensions{Name: s.handlers.Name})
	}
	return mustEncode(answer)
}

// connectionBody is the answer to an RDMA handshake: every field that a peer may require, all empty.
type connectionBody struct {
	LocalNICPath string `json:"local_nic_path"`
	PeerNICPath  string `json:"peer_nic_path"`
	QPNumbers    []int  `json:"qp_num"`
	ReplyMessage string `json:"reply_msg"`
}

// notify passes a notification to the handler. A peer that sends no strings gets no answer, as from Mooncake. A body for which
// there is no room is discarded before the answer: a peer reads none before it has sent all.
func (s *Server) notify(request frame, by caller) ([]byte, error) {
	room, err := s.receiving.Enter(by.from, int64(request.length), nil)
	if err != nil {
		return refusedNotification(fmt.Errorf("bytes of notifications that are arriving: %w", err)), request.discardBody()
	}
	defer room.Leave()
	encoded, err := request.readBody()
	if err != nil {
		return nil, err
	}
	var body struct {
		Name *string `json:"name"`
		Text *string `json:"notify_msg"`

		Extensions json.RawMessage `json:"kvferry"` // of notifyRequest; another program may put anything there
	}
	if err := json.Unmarshal(encoded, &body); err != nil {
		return nil, jsonError("notification", err)
	}
	if body.Name == nil || body.Text == nil {
		return nil, malformed("notification without name and notify_msg")
	}
	if err := s.isFor(body.Extensions, by); err != nil {
		return mustEncode(notifyAnswer{Extensions: mustEncode(notifyExtensions{Reason: err.Error(), OtherEngine: true})}), nil
	}
	if err := s.handlers.Notify(Notification{Name: *body.Name, Text: *body.Text}, by.from); err != nil {
		return refusedNotification(err), nil
	}
	return mustEncode(notifyBody{Text: "success"}), nil
}

// isFor returns nil if this is the engine that a notification is for, or it is for none in particular.
func (s *Server) isFor(encoded json.RawMessage, by caller) error {
	var extensions notifyRequest
	if !by.proven || json.Unmarshal(encoded, &extensions) != nil || extensions.For == "" {
		return nil
	}
	if own := s.options.Security.Identity(); extensions.For != own {
		return fmt.Errorf("this is engine %s, and the notification is for engine %.40q", own, extensions.For)
	}
	return nil
}

func refusedNotification(reason error) []byte {
	return mustEncode(notifyAnswer{Extensions: mustEncode(notifyExtensions{Reason: reason.Error()})})
}
