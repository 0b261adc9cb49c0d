package metadata

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"kvferry/core/address"
	"kvferry/core/status"
)

// Directory says which engines a store knows, for people who look after a cluster. It publishes nothing. Its methods may be called
// from any goroutine.
type Directory interface {
	// Members describes the engines of these names, or all that the store knows where there are none, ordered by name. It asks each
	// engine whether it lives, many at once. An error means that the store cannot be read; what is wrong with one engine is in its
	// Member.
	Members(ctx context.Context, names []string) ([]Member, error)
	// Forget removes what the store has of an engine. It fails where an engine answers, or may live, unless force is set, and where
	// the entries change meanwhile.
	Forget(ctx context.Context, name string, force bool) error
	Close() error
}

// OpenDirectory is Open for a Directory.
func OpenDirectory(connection string, o Options) (Directory, error) {
	o.KeepInterval = 0
	store, err := Open(connection, o)
	if err != nil {
		return nil, err
	}
	return store.(Directory), nil
}

// Member is an engine as a store knows it.
type Member struct {
	Name    string `json:"name"`
	State   State  `json:"state"`
	Problem string `json:"problem,omitempty"` // why the state is not Reachable, or what is wrong with an entry
	Kind    string `json:"kind,omitempty"`    // kvferry or mooncake; "" where there is no descriptor
	Address string `json:"address,omitempty"` // host:port of the handshake port
	Data    string `json:"data_address,omitempty"`

	Since   string `json:"since,omitempty"`   // when the engine took its name, by its own clock; "" where it does not say
	Changed string `json:"changed,omitempty"` // when it wrote its descriptor last, likewise

	Identity  string `json:"identity,omitempty"`
	Buffers   int    `json:"buffers"`
	Bytes     uint64 `json:"bytes"`
	Truncated bool   `json:"truncated,omitempty"` // there are more buffers than these
}

// State says whether an engine answers at the address that the store has.
type State string

// The states of a Member.
const (
	Reachable State = "reachable"
	Stale     State = "stale"   // nobody answers, or another engine: the entries are what a killed engine has left
	Unclear   State = "unclear" // it is not known whether it lives
	Missing   State = "missing" // the store has no address of it
)

const (
	maxMembers = 1 << 17 // keys that are listed
	asked      = 64      // engines that are asked at once
)

// Members implements Directory. In P2P mode the engines themselves are asked, by their names.
func (s *p2pStore) Members(ctx context.Context, names []string) ([]Member, error) {
	if len(names) == 0 {
		return nil, status.Errorf(status.InvalidArgument, "with %s no store knows the engines: name them", P2P)
	}
	return each(names, func(name string) Member {
		m := Member{Name: name}
		at, err := s.HandshakeAddress(ctx, name)
		if err != nil {
			return m.in(Missing, err)
		}
		m.Address = at
		d, err := s.Fetch(ctx, name)
		switch {
		case err == nil:
			m.describe(d)
			m.State = Reachable
		case isNobody(err):
			return m.in(Stale, err)
		default:
			return m.in(Unclear, err)
		}
		return m
	}), nil
}

// Forget implements Directory.
func (s *p2pStore) Forget(context.Context, string, bool) error {
	return status.Errorf(status.InvalidArgument, "with %s there is no store to remove an engine from", P2P)
}

// Members implements Directory.
func (c *central) Members(ctx context.Context, names []string) ([]Member, error) {
	if len(names) == 0 {
		var err error
		if names, err = c.names(ctx); err != nil {
			return nil, err
		}
	}
	return each(names, func(name string) Member { return c.member(ctx, name) }), nil
}

// names are those of which the store has an address or a descriptor.
func (c *central) names(ctx context.Context) ([]string, error) {
	found := map[string]struct{}{}
	for _, kind := range []string{"rpc_meta/", "ram/"} {
		keys, err := c.kv.Keys(ctx, c.prefix+kind, maxMembers)
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			found[strings.TrimPrefix(key, c.prefix+kind)] = struct{}{}
		}
	}
	return slices.Collect(maps.Keys(found)), nil
}

// each describes engines, many at once, and orders them by name.
func each(names []string, describe func(name string) Member) []Member {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	members := make([]Member, len(names))
	var describing sync.WaitGroup
	places := make(chan struct{}, asked)
	for i, name := range names {
		places <- struct{}{}
		describing.Go(func() {
			members[i] = describe(name)
			<-places
		})
	}
	describing.Wait()
	return members
}

// member describes an engine by its entries, and asks it whether it lives.
func (c *central) member(ctx context.Context, name string) Member {
	m := Member{Name: name}
	meta, there, err := c.address(ctx, name)
	switch {
	case err != nil:
		return m.in(Unclear, err)
	case !there:
		m = m.in(Missing, c.fail("there is no key %s", c.addressKey(name)))
	default:
		m.Address, m.Since = meta.hostPort(), dated(uint64(meta.Version))
		m.State, m.Problem = c.stateOf(ctx, name, meta)
	}
	d, err := c.Fetch(ctx, name)
	if err != nil {
		return m.in(m.State, err)
	}
	m.describe(d)
	return m
}

// address is the address in the store under an engine's name, and whether there is one.
func (c *central) address(ctx context.Context, name string) (m rpcMeta, there bool, err error) {
	key := c.addressKey(name)
	value, there, err := c.kv.Get(ctx, key)
	if err != nil || !there {
		return m, false, err
	}
	if m, err = parseSignedMeta(key, value, name, c.probe.Security); err != nil {
		return m, true, c.fail("the value of %s is no address of an engine, or of none that may be asked: %w", key, err)
	}
	return m, true, nil
}

// stateOf asks at an address whether the engine of that name lives there.
func (c *central) stateOf(ctx context.Context, name string, at rpcMeta) (State, string) {
	answered, err := c.probe.identify(ctx, at.hostPort())
	switch {
	case err == nil && (answered == "" || answered == name):
		return Reachable, ""
	case err == nil:
		return Stale, "another engine answers at " + at.hostPort() + ": " + answered
	case isNobody(err):
		return Stale, err.Error()
	}
	return Unclear, err.Error()
}

// Forget implements Directory. It removes the descriptor first: the name is taken until the end.
func (c *central) Forget(ctx context.Context, name string, force bool) error {
	addressKey, segmentKey := c.addressKey(name), c.segmentKey(name)
	meta, addressed, err := c.kv.Get(ctx, addressKey)
	if err != nil {
		return err
	}
	descriptor, described, err := c.kv.Get(ctx, segmentKey)
	if err != nil {
		return err
	}
	if !addressed && !described {
		return c.fail("there is no engine %q: no key %s and no key %s", name, addressKey, segmentKey)
	}
	if addressed && !force {
		if err := c.requireStale(ctx, name, meta); err != nil {
			return err
		}
	}
	if described {
		err = c.kv.Remove(ctx, segmentKey, descriptor)
	}
	if err == nil && addressed {
		err = c.kv.Remove(ctx, addressKey, meta)
	}
	if err != nil {
		return err
	}
	return errors.Join(c.requireGone(ctx, segmentKey), c.requireGone(ctx, addressKey))
}

// requireStale returns nil when the engine of an entry is known to be gone. An entry that is no address leads to nobody.
func (c *central) requireStale(ctx context.Context, name string, value []byte) error {
	meta, err := parseMeta(value)
	if err != nil {
		return nil
	}
	switch state, problem := c.stateOf(ctx, name, meta); state {
	case Stale:
		return nil
	case Reachable:
		return c.fail("engine %q lives: it answers at %s", name, meta.hostPort())
	default:
		return c.fail("engine %q may live, at %s: %s", name, meta.hostPort(), problem)
	}
}

// requireGone is an error where a key is there: an engine has written it since it was looked at.
func (c *central) requireGone(ctx context.Context, key string) error {
	_, there, err := c.kv.Get(ctx, key)
	if err == nil && there {
		err = c.fail("an engine has written %s meanwhile", key)
	}
	return err
}

// in is the member with a state and its reason.
func (m Member) in(state State, why error) Member {
	m.State = state
	if m.Problem == "" {
		m.Problem = why.Error()
	}
	return m
}

// describe adds what a descriptor says.
func (m *Member) describe(d *Descriptor) {
	m.Kind, m.Identity, m.Truncated = d.Kind(), d.Identity, d.Truncated
	m.Data = d.DataAddress(m.Address)
	m.Changed = dated(d.Version)
	m.Buffers = len(d.Buffers)
	for _, b := range d.Buffers {
		m.Bytes += b.Length
	}
}

// Kind is what the owner is: kvferry or mooncake.
func (d *Descriptor) Kind() string {
	if d.IsKvferry {
		return "kvferry"
	}
	return "mooncake"
}

// DataAddress is host:port of the data port, of an engine whose handshake port has that address; "" where neither says a host.
func (d *Descriptor) DataAddress(handshake string) string {
	host := d.DataHost
	if host == "" {
		at, err := address.Parse(handshake, 0)
		if err != nil {
			return ""
		}
		host = at.Host
	}
	return net.JoinHostPort(host, strconv.Itoa(d.DataPort))
}

// dated is the time of a version, in RFC 3339; "" for none.
func dated(version uint64) string {
	const microsecondsOfAYear = 365 * 24 * 3600 * 1e6
	if version == 0 || version > 9000*microsecondsOfAYear { // a year of more digits has no place in RFC 3339
		return ""
	}
	return time.UnixMicro(int64(version)).UTC().Format(time.RFC3339)
}
