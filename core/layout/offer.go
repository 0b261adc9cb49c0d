package layout

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Key stands for an offer. Whoever knows it may do what the offer allows.
type Key [16]byte

// OfferVersion is that of the JSON form of an offer. A reader refuses others.
const OfferVersion = 1

// MaxOfferText is how many bytes an offer in JSON may have.
const MaxOfferText = 4 << 20

// maxOffered bounds the ranges of memory that a place lies in, so that an offer of it takes some MiB at most.
const maxOffered = 1 << 18

// Offered is an offer as its receiver knows it: a place, the key that a transfer needs, and the name of the engine that has the
// memory. The key is in the place, so that a plan has it.
type Offered struct {
	Place
	Engine      string
	Read, Write bool // what the receiver may do
}

type offerText struct {
	Version int             `json:"kvferry_offer"`
	Engine  string          `json:"engine"`
	Key     string          `json:"key"`    // 32 hexadecimal digits
	Access  string          `json:"access"` // "read", "write" or "read write"
	Blocks  []uint64        `json:"blocks,omitempty"`
	Slots   []uint64        `json:"slots,omitempty"`
	First   uint64          `json:"first,omitempty"`
	Layout  json.RawMessage `json:"layout"`
}

var accessWords = map[[2]bool]string{{true, false}: "read", {false, true}: "write", {true, true}: "read write"}

// JSON is the offer as text, for any side channel that keeps the key secret.
func (o *Offered) JSON() []byte {
	written, err := json.Marshal(&offerText{
		Version: OfferVersion, Engine: o.Engine, Key: hex.EncodeToString(o.Key[:]), Access: accessWords[[2]bool{o.Read, o.Write}],
		Blocks: o.Blocks, Slots: o.Slots, First: o.First, Layout: o.Layout.JSON(),
	})
	if err != nil {
		panic(err) // numbers and strings: it cannot happen
	}
	return written
}

// ParseOffer reads an offer from JSON, and checks it. The text may come from anybody.
func ParseOffer(written []byte) (*Offered, error) {
	if len(written) > MaxOfferText {
		return nil, fmt.Errorf("an offer of %d bytes, where %d are the most", len(written), MaxOfferText)
	}
	var t offerText
	decoder := json.NewDecoder(bytes.NewReader(written))
	if err := decoder.Decode(&t); err != nil {
		return nil, fmt.Errorf("the text is no offer: %w", err)
	}
	if decoder.More() {
		return nil, errors.New("the text goes on behind the offer")
	}
	if t.Version != OfferVersion {
		return nil, fmt.Errorf("an offer of version %d, where %d is known", t.Version, OfferVersion)
	}
	o := &Offered{Place: Place{Blocks: t.Blocks, Slots: t.Slots, First: t.First}, Engine: t.Engine}
	for access, word := range accessWords {
		if word == t.Access {
			o.Read, o.Write = access[0], access[1]
		}
	}
	key, err := hex.DecodeString(t.Key)
	switch {
	case err != nil || len(key) != len(o.Key):
		return nil, errors.New("the key of the offer is not 32 hexadecimal digits")
	case !o.Read && !o.Write:
		return nil, fmt.Errorf("the access of the offer is %q, which is none of read, write and read write", t.Access)
	case t.Engine == "":
		return nil, errors.New("the offer names no engine")
	}
	copy(o.Key[:], key)
	if o.Key == (Key{}) {
		return nil, errors.New("the key of the offer is 0")
	}
	if o.Layout, err = Parse(t.Layout); err != nil {
		return nil, err
	}
	return o, o.Place.check(0)
}

// room is how many tokens have a place, from the first one that moves on.
func (p *Place) room() uint64 {
	tokens := uint64(len(p.Slots))
	if p.Slots == nil {
		tokens = uint64(len(p.Blocks)) * p.Layout.BlockTokens
	}
	return tokens - min(tokens, p.First)
}

// Ranges are the memory of the place, by address. None of them is adjacent to the next.
func (p *Place) Ranges() ([]Range, error) {
	tokens := p.room()
	if tokens == 0 {
		return nil, errors.New("there are no tokens in it")
	}
	own := *p
	own.Key = Key{}
	request := Request{Sources: []Place{own}, Destinations: []Place{own}, Tokens: tokens} // all of it, to itself
	plan, err := request.NewPlan()
	if err != nil {
		return nil, err
	}
	transfer := plan.Transfers[0]
	if transfer.Runs > maxOffered {
		return nil, fmt.Errorf("it lies in %d ranges of memory, where %d are the most", transfer.Runs, maxOffered)
	}
	all := make([]Range, 0, transfer.Runs)
	var portion [128]Run
	runs := transfer.Each()
	for n := runs.Next(portion[:]); n > 0; n = runs.Next(portion[:]) {
		for _, run := range portion[:n] {
			all = append(all, Range{run.Destination, run.Bytes})
		}
	}
	slices.SortFunc(all, func(a, b Range) int { return cmp.Compare(a.Address, b.Address) })
	merged := all[:1]
	for _, r := range all[1:] {
		if last := &merged[len(merged)-1]; last.Address+last.Bytes == r.Address {
			last.Bytes += r.Bytes
		} else {
			merged = append(merged, r)
		}
	}
	return slices.Clip(merged), nil
}
