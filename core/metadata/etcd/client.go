package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"kvferry/core/metadata/kv"

	"google.golang.org/protobuf/encoding/protowire"
)

// client makes the calls of a cluster that the store needs:
//
//  1. It chooses an end point: the one that answered last. Where there is none, it asks all of them at once, and takes the
//     first that answers for the cluster.
//  2. With a user, it logs in, and keeps the token.
//  3. It calls the method.
//  4. A token that the cluster does not know any more is replaced, and the call made again.
//  5. An end point that fails loses its connection, and the next call chooses again. The call itself is made again if it only
//     reads, or was not sent.
type client struct {
	endpoints      []*endpoint
	user, password string
	limit          time.Duration // of a request of the store, which may be several calls

	loggingIn turn // held by who replaces login

	mu     sync.Mutex
	chosen *endpoint // nil: the next call chooses
	login  *login    // nil: the next call logs in
}

// login is what a server has said to name and password.
type login struct {
	token string // "" where the cluster has no authentication
}

const (
	attempts   = 3 // of a call
	retryPause = 50 * time.Millisecond
)

// Errors of etcd that are acted on.
const (
	leaseNotFound  = "etcdserver: requested lease not found"
	authNotEnabled = "etcdserver: authentication is not enabled"
	invalidToken   = "etcdserver: invalid auth token"
	noToken        = "etcdserver: user name is empty" // authentication was enabled since the login
	outdatedToken  = "etcdserver: revision of auth store is old"
)

// Methods of etcd's API.
const (
	methodRange        = "KV/Range"
	methodPut          = "KV/Put"
	methodTxn          = "KV/Txn"
	methodGrant        = "Lease/LeaseGrant"
	methodKeepAlive    = "Lease/LeaseKeepAlive" // a stream, which ends after one request and its reply
	methodAuthenticate = "Auth/Authenticate"
)

// probedKey is what end points are asked for. It need not be there.
const probedKey = "mooncake/"

// says reports whether an error is one of etcd's.
func says(err error, messages ...string) bool {
	var refused *callError
	return errors.As(err, &refused) && slices.Contains(messages, refused.message)
}

// isUnavailable reports whether another end point, or the same one later, may do better.
func isUnavailable(err error) bool {
	var refused *callError
	if errors.As(err, &refused) {
		return refused.code == codeUnavailable
	}
	return !errors.Is(err, kv.ErrTooLong)
}

// isOfEtcd reports whether a call was answered for the cluster, whatever the answer was.
func isOfEtcd(err error) bool {
	var refused *callError
	return err == nil || errors.As(err, &refused) && refused.code != codeUnavailable && strings.HasPrefix(refused.message, "etcdserver: ")
}

// get returns the entry of a key.
func (c *client) get(ctx context.Context, key string) (e entry, found bool, err error) {
	reply, err := c.call(ctx, methodRange, rangeRequest(key), true)
	if err != nil {
		return e, false, err
	}
	return rangeReply(reply)
}

// keys returns the first keys from one key on and before another, in their order. more says that there are further ones.
func (c *client) keys(ctx context.Context, from, end string, limit int) (keys []string, more bool, err error) {
	reply, err := c.call(ctx, methodRange, keysRequest(from, end, limit), true)
	if err != nil {
		return nil, false, err
	}
	return keysReply(reply)
}

// put puts a key on a lease; on none, where that is 0.
func (c *client) put(ctx context.Context, key, value string, lease int64) error {
	_, err := c.call(ctx, methodPut, putRequest(key, value, lease), false)
	return err
}

// putIf is put if the key was changed last at a revision; at 0, if it is not there.
func (c *client) putIf(ctx context.Context, revision int64, key, value string, lease int64) (done bool, err error) {
	return c.transact(ctx, key, revision, opPut, putRequest(key, value, lease))
}

// removeIf removes a key that was changed last at a revision.
func (c *client) removeIf(ctx context.Context, revision int64, key string) (done bool, err error) {
	return c.transact(ctx, key, revision, opDelete, deleteRequest(key))
}

func (c *client) transact(ctx context.Context, key string, revision int64, op protowire.Number, request []byte) (done bool, err error) {
	reply, err := c.call(ctx, methodTxn, txnRequest(key, revision, op, request), false)
	if err != nil {
		return false, err
	}
	return txnReply(reply)
}

// grant makes a lease. The cluster may give it more time than it is asked for.
func (c *client) grant(ctx context.Context, ttl time.Duration) (lease int64, granted time.Duration, err error) {
	reply, err := c.call(ctx, methodGrant, grantRequest(int64(ttl/time.Second)), false)
	if err != nil {
		return 0, 0, err
	}
	lease, seconds, err := leaseReply(reply)
	if err == nil && (lease == 0 || seconds <= 0) {
		err = fmt.Errorf("the cluster grants the lease %d for %d s", lease, seconds)
	}
	return lease, time.Duration(seconds) * time.Second, err
}

// keepAlive renews a lease, and returns for how long; 0 where it has ended.
func (c *client) keepAlive(ctx context.Context, lease int64) (time.Duration, error) {
	reply, err := c.call(ctx, methodKeepAlive, keepAliveRequest(lease), true)
	if err != nil {
		return 0, err
	}
	_, seconds, err := leaseReply(reply)
	return time.Duration(max(0, seconds)) * time.Second, err
}

// call calls a method of the cluster. A call that only reads may be made twice.
func (c *client) call(ctx context.Context, method string, request []byte, reads bool) ([]byte, error) {
	for attempt := 1; ; attempt++ {
		reply, sent, err := c.attempt(ctx, method, request, reads)
		if err == nil || attempt == attempts || ctx.Err() != nil {
			return reply, err
		}
		switch {
		case says(err, invalidToken, noToken, outdatedToken) && c.hasUser():
			continue // with another token
		case !isUnavailable(err), sent && !reads, !sent && len(c.endpoints) == 1:
			return nil, err
		}
		pause := time.NewTimer(retryPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, err
		}
	}
}

// attempt calls a method once. sent means that the request may have reached a server.
func (c *client) attempt(ctx context.Context, method string, request []byte, reads bool) (reply []byte, sent bool, err error) {
	e, err := c.choose(ctx)
	if err != nil {
		return nil, false, err
	}
	used, err := c.logIn(ctx, e)
	if err == nil {
		shorter, done := c.within(ctx, reads)
		reply, err = e.call(shorter, method, used.token, request)
		done()
		sent = !errors.As(err, new(dialError))
	}
	switch {
	case err == nil:
		return reply, true, nil
	case says(err, invalidToken, noToken, outdatedToken):
		c.forgetLogin(used)
	case isUnavailable(err) && !errors.Is(ctx.Err(), context.Canceled):
		c.abandon(e)
	}
	return nil, sent, err
}

// within is the time for one call: half of it where another end point can be asked in the other half.
func (c *client) within(ctx context.Context, reads bool) (context.Context, context.CancelFunc) {
	if !reads || len(c.endpoints) == 1 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, c.limit/2, fmt.Errorf("no answer within %v", c.limit/2))
}

// choose returns the end point for a call.
func (c *client) choose(ctx context.Context) (*endpoint, error) {
	if len(c.endpoints) == 1 {
		return c.endpoints[0], nil
	}
	c.mu.Lock()
	chosen, token := c.chosen, ""
	if c.login != nil {
		token = c.login.token
	}
	c.mu.Unlock()
	if chosen != nil {
		return chosen, nil
	}
	chosen, err := c.race(ctx, token)
	if err == nil {
		c.mu.Lock()
		c.chosen = chosen
		c.mu.Unlock()
	}
	return chosen, err
}

// race asks all end points for a key, and returns the first one that answers.
func (c *client) race(ctx context.Context, token string) (*endpoint, error) {
	ctx, cancel := context.WithCancel(ctx)
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	errs := make([]error, len(c.endpoints))
	answers := make(chan int, len(c.endpoints))
	for i, e := range c.endpoints {
		asked.Go(func() {
			_, errs[i] = e.call(ctx, methodRange, token, countRequest(probedKey))
			answers <- i
		})
	}
	failures := make([]string, 0, len(c.endpoints))
	for range c.endpoints {
		i := <-answers
		if isOfEtcd(errs[i]) {
			return c.endpoints[i], nil
		}
		failures = append(failures, fmt.Sprintf("%s: %v", c.endpoints[i].address, errs[i]))
	}
	return nil, dialError{errors.New(strings.Join(failures, "; "))}
}

// abandon has the next call choose an end point, and connect to this one anew where it uses it again.
func (c *client) abandon(e *endpoint) {
	e.renew()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chosen == e {
		c.chosen = nil
	}
}

func (c *client) hasUser() bool { return c.user != "" && c.password != "" }

// logIn returns what calls are made with.
func (c *client) logIn(ctx context.Context, e *endpoint) (*login, error) {
	if !c.hasUser() {
		return &login{}, nil
	}
	if err := c.loggingIn.take(ctx); err != nil {
		return nil, err
	}
	defer c.loggingIn.give()
	c.mu.Lock()
	known := c.login
	c.mu.Unlock()
	if known != nil {
		return known, nil
	}
	fresh := &login{}
	reply, err := e.call(ctx, methodAuthenticate, "", loginRequest(c.user, c.password))
	if err == nil {
		fresh.token, err = loginReply(reply)
	} else if says(err, authNotEnabled) {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.login = fresh
	return fresh, nil
}

// forgetLogin has the next call log in, unless another call has done so since.
func (c *client) forgetLogin(used *login) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.login == used {
		c.login = nil
	}
}

// close ends the idle connections. Those of calls end with the dialer's context.
func (c *client) close() {
	for _, e := range c.endpoints {
		e.renew()
	}
}
