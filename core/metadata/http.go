package metadata

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"kvferry/core/address"
	"kvferry/core/metadata/kv"
	"kvferry/core/status"
)

const (
	defaultHTTPConnectTimeout = 1500 * time.Millisecond // Mooncake's
	defaultHTTPTimeout        = 3 * time.Second         // likewise

	maxResponseHeader = 64 << 10 // bytes
	maxQuoted         = 200      // bytes of what a server says of an error
	idleConnections   = 4
	idleTimeout       = 30 * time.Second
)

// httpStore is a kv.Store on a server of Mooncake's metadata protocol: GET, PUT and DELETE of <base>?key=<key>. It follows no
// redirects, so that what it sends goes nowhere else, and uses no proxy.
type httpStore struct {
	base    string // with what separates the query from it
	shown   string
	user    *url.Userinfo
	token   string
	timeout time.Duration
	client  http.Client
}

func init() {
	for _, scheme := range []string{"http", "https"} {
		kv.Register(scheme, func(connection string, o kv.Options) (kv.Store, error) { return newHTTP(connection, o) })
	}
}

func newHTTP(connection string, o kv.Options) (*httpStore, error) {
	base, err := url.Parse(withBrackets(connection))
	if err != nil || base.Hostname() == "" {
		return nil, status.Errorf(status.InvalidArgument, "the metadata connection string %q is no URL with a host", kv.Redacted(connection))
	}
	config, err := o.Connection.TLS()
	if err != nil {
		return nil, err
	}
	s := &httpStore{shown: kv.Redacted(connection), user: base.User, token: o.HTTPToken, timeout: cmp.Or(o.Connection.ReplyTimeout, defaultHTTPTimeout)}
	separator := "?"
	if base.RawQuery != "" {
		separator = "&"
	}
	base.User, base.Fragment = nil, ""
	s.base = base.String() + separator
	dialer := net.Dialer{Timeout: cmp.Or(o.Connection.ConnectTimeout, defaultHTTPConnectTimeout)}
	s.client = http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: config, TLSHandshakeTimeout: s.timeout,
			DisableCompression: true, MaxResponseHeaderBytes: maxResponseHeader,
			MaxIdleConnsPerHost: idleConnections, IdleConnTimeout: idleTimeout,
		},
	}
	return s, nil
}

// withBrackets puts the host of a URL in brackets where it is an IPv6 address without any.
func withBrackets(connection string) string {
	scheme, rest, _ := strings.Cut(connection, "://")
	server, path := rest, ""
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		server, path = rest[:end], rest[end:]
	}
	user := server[:strings.LastIndexByte(server, '@')+1]
	at, err := address.Parse(server[len(user):], 0)
	if err != nil || !strings.Contains(at.Host, ":") || strings.HasPrefix(server[len(user):], "[") {
		return connection
	}
	host := "[" + strings.ReplaceAll(at.Host, "%", "%25") + "]"
	if at.Port != 0 {
		host += ":" + strconv.Itoa(at.Port)
	}
	return scheme + "://" + user + host + path
}

func (s *httpStore) Name() string { return s.shown }

func (s *httpStore) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

func (s *httpStore) Get(ctx context.Context, key string) (value []byte, found bool, err error) {
	code, body, err := s.do(ctx, http.MethodGet, key, nil)
	switch {
	case err != nil:
		return nil, false, err
	case code == http.StatusNotFound:
		return nil, false, nil
	case code != http.StatusOK:
		return nil, false, s.refused(http.MethodGet+" "+key, code, body)
	}
	return body, true, nil
}

func (s *httpStore) Put(ctx context.Context, key string, value []byte) error {
	code, body, err := s.do(ctx, http.MethodPut, key, value)
	if err != nil || isSuccess(code) {
		return err
	}
	if code == http.StatusBadRequest {
		// Mooncake's server replaces no rpc_meta, not even by itself.
		if there, found, err := s.Get(ctx, key); err == nil && found && bytes.Equal(there, value) {
			return nil
		}
	}
	return s.refused(http.MethodPut+" "+key, code, body)
}

func (s *httpStore) Remove(ctx context.Context, key string, value []byte) error {
	there, found, err := s.Get(ctx, key)
	if err != nil || !found || !bytes.Equal(there, value) {
		return err
	}
	code, body, err := s.do(ctx, http.MethodDelete, key, nil)
	if err != nil || isSuccess(code) || code == http.StatusNotFound {
		return err
	}
	return s.refused(http.MethodDelete+" "+key, code, body)
}

// Keys asks for pages of keys, as kvferry's server gives them. Mooncake's protocol has no such request.
func (s *httpStore) Keys(ctx context.Context, prefix string, limit int) (keys []string, err error) {
	after := ""
	for {
		code, body, err := s.ask(ctx, http.MethodGet, "listing "+prefix, s.query("prefix", prefix)+"&after="+escaped(after), nil)
		if err != nil {
			return nil, err
		}
		if code == http.StatusBadRequest {
			return nil, s.failed("listing "+prefix, errors.New("this server cannot list its keys, as Mooncake's: name the engines"))
		}
		if code != http.StatusOK {
			return nil, s.refused("listing "+prefix, code, body)
		}
		var page struct {
			Keys []string `json:"keys"`
			More bool     `json:"more"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return nil, s.failed("listing "+prefix, jsonError("the answer", err))
		}
		keys = append(keys, page.Keys...)
		if err := kv.CheckCount(keys, limit); err != nil {
			return nil, s.failed("listing "+prefix, err)
		}
		if !page.More || len(page.Keys) == 0 {
			return keys, nil
		}
		after = page.Keys[len(page.Keys)-1]
	}
}

func isSuccess(code int) bool { return code/100 == 2 }

// do makes a request for a key, and reads the answer.
func (s *httpStore) do(ctx context.Context, method, key string, value []byte) (code int, body []byte, err error) {
	return s.ask(ctx, method, method+" "+key, s.query("key", key), value)
}

// query is the URL with a parameter.
func (s *httpStore) query(name, value string) string { return s.base + name + "=" + escaped(value) }

func escaped(value string) string { return strings.ReplaceAll(url.QueryEscape(value), "+", "%20") }

// ask makes a request, and reads the answer. what is the request, for errors.
func (s *httpStore) ask(ctx context.Context, method, what, target string, value []byte) (code int, body []byte, err error) {
	ctx, done := kv.Within(ctx, s.timeout)
	defer done()
	request, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(value))
	if err != nil {
		return 0, nil, s.failed(what, err)
	}
	s.authorize(request)
	request.Header["Idempotency-Key"] = nil // not sent; it has net/http try again where the server has closed a kept connection
	if value != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := s.client.Do(request)
	if err == nil {
		defer response.Body.Close()
		code = response.StatusCode
		body, err = io.ReadAll(io.LimitReader(response.Body, kv.MaxValue+1))
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return 0, nil, s.failed(what, context.Cause(ctx))
	case err != nil:
		return 0, nil, s.failed(what, withoutURL(err))
	case len(body) > kv.MaxValue:
		return 0, nil, s.failed(what, fmt.Errorf("the answer is longer than %d bytes", kv.MaxValue))
	}
	return code, body, nil
}

func (s *httpStore) authorize(request *http.Request) {
	if s.user != nil {
		password, _ := s.user.Password()
		request.SetBasicAuth(s.user.Username(), password)
	}
	if s.token != "" {
		request.Header.Set("Authorization", "Bearer "+s.token)
	}
}

// withoutURL is the error without method and URL, which net/http puts before it.
func withoutURL(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

func (s *httpStore) failed(what string, err error) error {
	return status.Errorf(status.Metadata, "metadata store %s: %s: %w", s.shown, what, err)
}

// refused is the error of an answer without success.
func (s *httpStore) refused(what string, code int, body []byte) error {
	hint := ""
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden:
		hint = "; MC_METADATA_HTTP_TOKEN is the token that is sent"
	case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		hint = "; redirects are not followed"
	}
	return s.failed(what, fmt.Errorf("the server answers %d %s, %q%s", code, http.StatusText(code),
		bytes.TrimSpace(body[:min(len(body), maxQuoted)]), hint))
}
