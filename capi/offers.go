package main

// #include "internal.h"
import "C"

import (
	"math"
	"time"
	"unsafe"

	"kvferry/core"
	"kvferry/core/layout"
	"kvferry/core/status"
)

//export kvferry_go_make_offer
func kvferry_go_make_offer(engine unsafe.Pointer, place C.places_t, flags C.int, lifetime C.int64_t, reason *C.char) (handle unsafe.Pointer) {
	run(reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		if place == nil {
			return status.Errorf(status.InvalidArgument, "the place of the offer is NULL")
		}
		if flags&^(C.KVFERRY_OFFER_READ|C.KVFERRY_OFFER_WRITE|C.KVFERRY_OFFER_ONCE) != 0 {
			return status.Errorf(status.InvalidArgument, "the offer has flags %#x, some of which do not exist", int(flags))
		}
		if lifetime < 0 || lifetime > math.MaxInt64/C.int64_t(time.Millisecond) {
			return status.Errorf(status.InvalidArgument, "the offer is for %d ms", int64(lifetime))
		}
		places, err := readPlaces("place", place, 1)
		if err != nil {
			return err
		}
		options := core.OfferOptions{Once: flags&C.KVFERRY_OFFER_ONCE != 0, For: time.Duration(lifetime) * time.Millisecond}
		if flags&C.KVFERRY_OFFER_READ != 0 {
			options.Access |= core.RemoteRead
		}
		if flags&C.KVFERRY_OFFER_WRITE != 0 {
			options.Access |= core.RemoteWrite
		}
		offer, err := e.Offer(places[0], options)
		if err == nil {
			handle = handles.add(offer)
		}
		return err
	})
	return handle
}

//export kvferry_go_offer_text
func kvferry_go_offer_text(handle unsafe.Pointer, out *C.char, size C.size_t, reason *C.char) C.int64_t {
	return giveText(out, size, reason, func() (string, error) {
		offer, err := found[*core.Offer](handle, "offer")
		if err != nil {
			return "", err
		}
		return string(offer.Text()), nil
	})
}

// giveText writes a text to a buffer of size bytes, which may be nil, and returns the length of the whole text.
func giveText(out *C.char, size C.size_t, reason *C.char, text func() (string, error)) (length C.int64_t) {
	code := negated(reason, func() error {
		whole, err := text()
		if err != nil {
			return err
		}
		length = C.int64_t(len(whole))
		if out != nil {
			writeText(out, size, whole)
		}
		return nil
	})
	return orCode(code, length)
}

//export kvferry_go_revoke_offer
func kvferry_go_revoke_offer(handle unsafe.Pointer, ends C.int, reason *C.char) C.int {
	return negated(reason, func() error {
		offer, err := found[*core.Offer](handle, "offer")
		if err != nil {
			return err
		}
		if ends != 0 {
			handles.end(handle)
		}
		return offer.Revoke()
	})
}

//export kvferry_go_parse_offer
func kvferry_go_parse_offer(text C.text_t, length C.size_t, reason *C.char) (handle unsafe.Pointer) {
	run(reason, func() error {
		written, err := entries("the text of the offer", (*byte)(unsafe.Pointer(text)), length)
		if err != nil {
			return err
		}
		offered, err := layout.ParseOffer(written)
		if err != nil {
			return status.Errorf(status.InvalidArgument, "%w", err)
		}
		handle = handles.add(offered)
		return nil
	})
	return handle
}

//export kvferry_go_offered_engine
func kvferry_go_offered_engine(handle unsafe.Pointer, out *C.char, size C.size_t, reason *C.char) C.int64_t {
	return giveText(out, size, reason, func() (string, error) {
		offered, err := found[*layout.Offered](handle, "offer")
		if err != nil {
			return "", err
		}
		return offered.Engine, nil
	})
}

//export kvferry_go_free_offered
func kvferry_go_free_offered(handle unsafe.Pointer, reason *C.char) C.int {
	return negated(reason, func() error { return endOf[*layout.Offered](handle, "offer") })
}
