package staging

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// testPool is a pool whose blocks are made-up addresses, made at once unless grow is off. Each block has perBlock
// granules.
type testPool struct {
	*pool
	t      *testing.T
	grow   bool
	fails  error
	asked  int
	called map[*Account]int
}

func newTestPool(t *testing.T, blocks, perBlock int) *testPool {
	size := uint64(perBlock) * Granule
	p := &testPool{t: t, grow: true, called: map[*Account]int{}}
	p.pool = newPool("test", Options{BlockSize: size, PoolSize: 2 * size * uint64(blocks), Log: zap.NewNop()})
	p.ask = func() {
		p.asked++
		if p.grow {
			p.grown(p.make())
		}
	}
	p.call = func(a *Account) { // at once, so that a test sees what has come up
		if !a.closed {
			a.ready()
		}
	}
	t.Cleanup(p.close)
	return p
}

func (p *testPool) make() (uintptr, error) {
	if p.fails != nil {
		return 0, p.fails
	}
	return uintptr(len(p.blocks)+1) << 32, nil
}

// full makes all blocks that there may be.
func (p *testPool) full() *testPool {
	for len(p.blocks) < p.maxBlocks {
		p.grown(p.make())
	}
	return p
}

func (p *testPool) account(role Role) *Account {
	var a *Account
	a = newAccount(p.pool, role, func() { p.called[a]++ })
	return a
}

// try returns the lease of so many granules that an account gets, or nil.
func (p *testPool) try(a *Account, granules int) *Lease {
	l, err := a.TryLease(uint64(granules) * Granule)
	require.NoError(p.t, err)
	return l
}

func (p *testPool) get(a *Account, granules int) *Lease {
	l := p.try(a, granules)
	require.NotNil(p.t, l)
	return l
}

func (l *Lease) granules() int { return int(l.Length / Granule) }

func TestThePoolGrowsWhenLeasesCannotBeHadAndNoFurtherThanItsLimit(t *testing.T) {
	p := newTestPool(t, 4, 4)
	a := p.account(Initiator)
	require.Zero(t, p.asked, "nothing is made before it is needed")
	require.Nil(t, p.try(a, 1), "a block is being made")
	require.Equal(t, 1, p.called[a])
	require.Equal(t, 1, p.get(a, 1).granules())
	require.Equal(t, 1, p.asked)
	for range 100 {
		p.try(p.account(Initiator), 4)
		p.try(p.account(Target), 4)
	}
	require.Equal(t, 4, p.asked)
	require.Len(t, p.blocks, 4)
}

func TestTheLowestAddressesAreLeasedFirst(t *testing.T) {
	p := newTestPool(t, 4, 8).full()
	a := p.account(Initiator)
	first, second, third := p.get(a, 2), p.get(a, 2), p.get(a, 2)
	require.Less(t, first.Addr, second.Addr)
	require.Less(t, second.Addr, third.Addr)
	addr := second.Addr
	second.Release()
	require.Equal(t, addr, p.get(a, 1).Addr)
}

func TestALeaseIsAtLeastAGranuleAndAtMostABlock(t *testing.T) {
	p := newTestPool(t, 8, 4).full()
	a := p.account(Initiator)
	for want, length := range map[uint64]uint64{0: Granule, 1: Granule, Granule: Granule, Granule + 1: 2 * Granule, ^uint64(0): 4 * Granule} {
		l, err := a.TryLease(want)
		require.NoError(t, err)
		require.Equal(t, length, l.Length, "want %d", want)
		l.Release()
	}
}

func TestABusyPeerLeavesAsMuchAsItHas(t *testing.T) {
	p := newTestPool(t, 8, 8).full() // 64 granules, 48 for a role
	a, b, c := p.account(Initiator), p.account(Initiator), p.account(Initiator)
	var held [3]int
	for range 64 {
		for i, account := range []*Account{a, b, c} {
			if l := p.try(account, 1); l != nil {
				held[i]++
			}
		}
	}
	require.Equal(t, [3]int{12, 12, 12}, held, "a fourth of 48 each, a fourth free")
	require.NotNil(t, p.try(p.account(Initiator), 1))
}

func TestNeitherRoleTakesAllBlocks(t *testing.T) {
	p := newTestPool(t, 2, 8).full()
	for role, other := range map[Role]Role{Initiator: Target, Target: Initiator} {
		var leases []*Lease
		for range 100 {
			if l := p.try(p.account(role), 1); l != nil {
				leases = append(leases, l)
			}
		}
		require.Len(t, leases, 12)
		l := p.get(p.account(other), 1)
		l.Release()
		for _, l := range leases {
			l.Release()
		}
		p.closeAccounts()
	}
}

// closeAccounts ends those that wait.
func (p *testPool) closeAccounts() {
	for len(p.waiting) > 0 {
		p.waiting[0].Close()
	}
	for len(p.offers) > 0 {
		p.offers[0].Close()
	}
}

func TestThinLeasesGoOnlyToWhoHasNothing(t *testing.T) {
	p := newTestPool(t, 1, 16).full() // 12 granules for a role
	a, b, c := p.account(Initiator), p.account(Initiator), p.account(Target)
	p.get(a, 4)
	p.get(c, 3)
	thick := p.get(a, 4)
	p.get(b, 1)
	require.Nil(t, p.try(b, 8), "3 granules are thin: less than a quarter of a block")
	require.Equal(t, 3, p.get(p.account(Initiator), 8).granules())
	thick.Release()
	require.Equal(t, 1, p.called[b])
	require.Equal(t, 4, p.get(b, 8).granules())
}

func TestWhoWaitsIsServedInTurnAndNobodyOvertakes(t *testing.T) {
	p := newTestPool(t, 1, 4).full() // 3 for a role
	var leases []*Lease
	for range 3 {
		leases = append(leases, p.get(p.account(Initiator), 1))
	}
	first, second := p.account(Initiator), p.account(Initiator)
	require.Nil(t, p.try(first, 1))
	require.Nil(t, p.try(second, 1))
	leases[0].Release()
	require.Equal(t, 1, p.called[first])
	require.Equal(t, 0, p.called[second])
	require.Nil(t, p.try(p.account(Initiator), 1), "what is free is kept for the first")
	l := p.get(first, 1)
	leases[1].Release()
	require.Equal(t, 1, p.called[second])
	require.Equal(t, 1, p.called[first], "it is called once for each refusal")
	p.get(second, 1)
	l.Release()
}

func TestAnOfferNobodyFetchesGoesToTheNext(t *testing.T) {
	p := newTestPool(t, 1, 2).full() // 1 for a role
	l := p.get(p.account(Initiator), 1)
	idle, ready := p.account(Initiator), make(chan struct{}, 1)
	next := newAccount(p.pool, Initiator, func() { ready <- struct{}{} })
	require.Nil(t, p.try(idle, 1))
	require.Nil(t, p.try(next, 1))
	l.Release()
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatal("the idle account keeps its offer")
	}
	p.get(next, 1).Release()
	p.get(idle, 1).Release()
}

func TestAnOfferIsCutToWhatIsWantedAndTheRestServed(t *testing.T) {
	p := newTestPool(t, 1, 8).full() // 6 for a role
	l := p.get(p.account(Initiator), 6)
	first, second := p.account(Initiator), p.account(Initiator)
	require.Nil(t, p.try(first, 6))
	require.Nil(t, p.try(second, 6))
	l.Release()
	require.Equal(t, 2, p.get(first, 2).granules())
	require.Equal(t, 1, p.called[second])
	require.Equal(t, 4, p.get(second, 6).granules())
}

func TestAPoolThatCannotGrowMakesDo(t *testing.T) {
	p := newTestPool(t, 4, 4)
	a, b := p.account(Initiator), p.account(Target)
	p.try(a, 1)
	p.get(a, 1)
	p.fails = errors.New("no memory")
	require.Nil(t, p.try(b, 4))
	require.Equal(t, 1, p.called[b], "what there is, is offered")
	require.Equal(t, 3, p.get(b, 4).granules())
	asked := p.asked
	require.Nil(t, p.try(a, 1))
	require.Equal(t, asked, p.asked, "another try comes later")
	p.fails = nil
	p.retry = time.Now()
	require.Nil(t, p.try(a, 1))
	p.get(a, 1)
	require.Len(t, p.blocks, 2)
}

func TestWhereNoBlockCanBeMadeTheReasonIsToldAndTheNextDemandTriesAgain(t *testing.T) {
	p := newTestPool(t, 4, 4)
	p.fails = errors.New("no memory")
	a, b := p.account(Initiator), p.account(Initiator)
	for range 2 {
		require.Nil(t, p.try(a, 1))
		require.Nil(t, p.try(b, 1))
		for _, account := range []*Account{a, b} {
			_, err := account.TryLease(1)
			require.ErrorIs(t, err, p.fails)
		}
	}
	require.Equal(t, 2, p.called[a])
	p.fails = nil
	require.Nil(t, p.try(a, 1))
	p.get(a, 1)
}

func TestBlocksThatWereGivenUpAreNotLeasedAgain(t *testing.T) {
	p := newTestPool(t, 2, 4).full()
	a := p.account(Initiator)
	l := p.get(a, 1)
	p.giveUp([]uintptr{l.Addr})
	l.Release()
	next := p.get(a, 1)
	require.NotSame(t, p.blocks[0], next.block)
	require.Equal(t, 2, p.get(p.account(Initiator), 4).granules(), "a role has three quarters of what is left")
	require.Nil(t, p.try(p.account(Initiator), 1))
	waiting := p.waiting[0]
	p.giveUp([]uintptr{next.Addr})
	_, err := waiting.TryLease(1)
	require.ErrorContains(t, err, "given up")
	_, err = a.TryLease(1)
	require.ErrorContains(t, err, "given up")
	next.Release()
	addrs, givenUp := p.drain()
	require.Empty(t, addrs)
	require.Len(t, givenUp, 2)
}

func TestWhoWaitsIsToldWhenTheLastBlockIsGivenUpOfAPoolThatCouldNotGrow(t *testing.T) {
	for _, recovered := range []bool{false, true} {
		p := newTestPool(t, 4, 4)
		first, second, waiter := p.account(Initiator), p.account(Target), p.account(Target)
		p.try(first, 3)
		l := p.get(first, 3)
		p.get(second, 1)
		p.fails = errors.New("no memory")
		require.Nil(t, p.try(waiter, 2))
		require.Zero(t, p.called[waiter], "there may be something for it when others give back what they have")
		if recovered {
			p.fails = nil
		}
		p.giveUp([]uintptr{l.Addr})
		require.Equal(t, 1, p.called[waiter])
		got, err := waiter.TryLease(2 * Granule)
		require.Equal(t, recovered, err == nil, "%v", err)
		require.Equal(t, recovered, got != nil)
	}
}

func TestLeaseWaits(t *testing.T) {
	p := newTestPool(t, 1, 2).full()
	a := newAccount(p.pool, Initiator, nil)
	l, err := a.Lease(t.Context(), 1)
	require.NoError(t, err)
	var waiting sync.WaitGroup
	for range 4 { // several at once, on one account
		waiting.Go(func() {
			l, err := a.Lease(t.Context(), 1)
			require.NoError(t, err)
			l.Release()
		})
	}
	l.Release()
	waiting.Wait()
}

func TestAWaitForALeaseEndsWithItsContext(t *testing.T) {
	p := newTestPool(t, 1, 2).full()
	l := p.get(p.account(Initiator), 1)
	a := newAccount(p.pool, Initiator, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("aborted")
	ended := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := a.Lease(ctx, 1)
			ended <- err
		}()
	}
	cancel(reason)
	require.ErrorIs(t, <-ended, reason)
	require.ErrorIs(t, <-ended, reason)
	l.Release()
	p.get(p.account(Initiator), 1)
}

func TestAFailureIsToldToTheCallThatItIsAbout(t *testing.T) {
	p := newTestPool(t, 1, 2)
	p.grow, p.fails = false, errors.New("no memory")
	a := newAccount(p.pool, Initiator, nil)
	require.Nil(t, p.try(a, 1))
	p.grown(p.make())
	a.withdraw() // as Lease does whose context ends
	require.Nil(t, p.try(a, 1), "the next call asks anew")
}

func TestClosingEndsWaits(t *testing.T) {
	for name, end := range map[string]func(*testPool, *Account){
		"of the pool":    func(p *testPool, _ *Account) { p.close() },
		"of the account": func(_ *testPool, a *Account) { a.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			p := newTestPool(t, 1, 2).full()
			l := p.get(p.account(Initiator), 1)
			a := newAccount(p.pool, Initiator, nil)
			ended := make(chan error)
			go func() {
				_, err := a.Lease(t.Context(), 1)
				ended <- err
			}()
			end(p, a)
			require.ErrorIs(t, <-ended, ErrClosed)
			_, err := a.TryLease(1)
			require.ErrorIs(t, err, ErrClosed)
			l.Release()
		})
	}
}

func TestAClosedAccountIsNotCalledAndKeepsNothing(t *testing.T) {
	p := newTestPool(t, 1, 2).full()
	l := p.get(p.account(Initiator), 1)
	waiting, offered := p.account(Initiator), p.account(Initiator)
	require.Nil(t, p.try(offered, 1))
	require.Nil(t, p.try(waiting, 1))
	waiting.Close()
	l.Release()
	offered.Close()
	require.Zero(t, p.called[waiting])
	p.get(p.account(Initiator), 1)
}

func TestReadyMayTakeLocksThatAreHeldDuringCalls(t *testing.T) {
	p := newTestPool(t, 1, 8).full() // 6 for a role
	p.call = (*Account).call
	var mu sync.Mutex
	called := make(chan struct{}, 3)
	locked := func() *Account {
		return newAccount(p.pool, Initiator, func() {
			mu.Lock()
			defer mu.Unlock()
			called <- struct{}{}
		})
	}
	a, b, c := locked(), locked(), locked()
	l := p.get(p.account(Initiator), 6)
	for _, waiting := range []*Account{a, b, c} {
		require.Nil(t, p.try(waiting, 6))
	}
	mu.Lock()
	l.Release()
	p.get(a, 1) // offers the rest to the next
	b.Close()
	mu.Unlock()
	<-called
	<-called
	p.get(c, 5)
}

func TestReleasingTwiceDoesNothing(t *testing.T) {
	p := newTestPool(t, 1, 4).full()
	a := p.account(Initiator)
	l := p.get(a, 1)
	l.Release()
	p.get(a, 1)
	l.Release()
	require.Equal(t, 1, p.held[Initiator])
}

// TestRandomLeasesKeepTheBounds is a model test: whatever accounts lease and release, no byte is leased twice (the ring of
// old wrapped around onto bytes that were still being sent), no role takes all, and nobody waits for what he may have.
func TestRandomLeasesKeepTheBounds(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, whatever processors there are")
	}
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		p := newTestPool(t, 1+r.IntN(4), 1+r.IntN(16))
		m := &leaseModel{t: t, p: p, owner: map[uintptr]*Lease{}}
		for i := range 12 {
			m.accounts = append(m.accounts, p.account(Role(i%2)))
		}
		for range 400 {
			switch a := m.accounts[r.IntN(len(m.accounts))]; {
			case r.IntN(3) > 0:
				m.take(p.try(a, 1+r.IntN(16)))
			case len(m.leases) > 0:
				m.release(r.IntN(len(m.leases)))
			}
			m.check()
		}
		for len(m.leases) > 0 {
			m.release(0)
		}
		p.closeAccounts()
		m.checkNothingHeld()
	}
}

type leaseModel struct {
	t        *testing.T
	p        *testPool
	accounts []*Account
	leases   []*Lease
	owner    map[uintptr]*Lease // by granule
}

func (m *leaseModel) take(l *Lease) {
	if l == nil {
		return
	}
	m.leases = append(m.leases, l)
	for i := range uintptr(l.granules()) {
		require.Nil(m.t, m.owner[l.Addr+i*Granule], "leased twice")
		m.owner[l.Addr+i*Granule] = l
	}
}

func (m *leaseModel) release(i int) {
	l := m.leases[i]
	m.leases = append(m.leases[:i], m.leases[i+1:]...)
	for i := range uintptr(l.granules()) {
		delete(m.owner, l.Addr+i*Granule)
	}
	l.Release()
}

func (m *leaseModel) check() {
	p := m.p
	p.mu.Lock() // offers that are not fetched in time are revoked by a timer
	defer p.mu.Unlock()
	require.LessOrEqual(m.t, len(p.blocks), p.maxBlocks)
	free := len(p.blocks)*p.perBlock() - p.held[Initiator] - p.held[Target]
	require.GreaterOrEqual(m.t, free, 0)
	for role := range p.held {
		limit := max(1, len(p.blocks)*p.perBlock()*3/4)
		require.LessOrEqual(m.t, p.held[role], limit)
		if free == 0 || p.held[role] == limit {
			continue
		}
		for _, a := range p.waiting {
			require.False(m.t, a.role == Role(role) && a.held == 0, "an account with nothing waits though there is something free")
		}
	}
}

func (m *leaseModel) checkNothingHeld() {
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	require.Equal(m.t, [2]int{}, m.p.held)
	for _, b := range m.p.blocks {
		require.NotContains(m.t, b.used, true)
	}
}

func TestLeasesOfManyGoroutinesNeverOverlap(t *testing.T) {
	p := newTestPool(t, 2, 8)
	var mu sync.Mutex
	owner := map[uintptr]int{}
	var running sync.WaitGroup
	for i := range 12 {
		running.Go(func() {
			a := newAccount(p.pool, Role(i%2), nil)
			defer a.Close()
			for n := range 200 {
				l, err := a.Lease(t.Context(), uint64(1+n%8)*Granule)
				require.NoError(t, err)
				mu.Lock()
				for g := range uintptr(l.granules()) {
					require.Zero(t, owner[l.Addr+g*Granule], fmt.Sprint("leased twice: ", l))
					owner[l.Addr+g*Granule] = i + 1
				}
				mu.Unlock()
				mu.Lock()
				for g := range uintptr(l.granules()) {
					delete(owner, l.Addr+g*Granule)
				}
				mu.Unlock()
				l.Release()
			}
		})
	}
	running.Wait()
}
