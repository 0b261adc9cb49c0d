package metaserver

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// client asks a server, and keeps connections until the test ends.
type client struct {
	t    *testing.T
	http *http.Client
	url  string
}

// start runs a server on the loopback device until the test ends.
func start(t *testing.T, o Options) (*Server, client) {
	t.Helper()
	o.Host = "127.0.0.1"
	s, err := Start(o)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s, clientOf(t, s, &http.Transport{})
}

func clientOf(t *testing.T, s *Server, transport *http.Transport) client {
	t.Cleanup(transport.CloseIdleConnections)
	return client{t, &http.Client{Transport: transport}, s.Address()}
}

// do sends a request for a key, and returns the status and the body.
func (c client) do(method, key, body string) (int, string) {
	c.t.Helper()
	return c.send(method, c.url+"?key="+url.QueryEscape(key), strings.NewReader(body), nil)
}

func (c client) send(method, target string, body io.Reader, header http.Header) (int, string) {
	c.t.Helper()
	request, err := http.NewRequest(method, target, body)
	require.NoError(c.t, err)
	for name := range header {
		request.Header.Set(name, header.Get(name))
	}
	response, err := c.http.Do(request)
	require.NoError(c.t, err)
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	require.NoError(c.t, err)
	return response.StatusCode, string(got)
}

// put must succeed.
func (c client) put(key, value string) {
	c.t.Helper()
	code, text := c.do("PUT", key, value)
	require.Equal(c.t, 200, code, text)
}

// refused must be answered with that status, by a text that has these words in it.
func (c client) refused(code int, words, method, key, body string) {
	c.t.Helper()
	got, text := c.do(method, key, body)
	require.Equal(c.t, code, got, text)
	require.Contains(c.t, text, words)
}

// holds checks what is stored under a key; "" for nothing.
func (c client) holds(key, value string) {
	c.t.Helper()
	code, text := c.do("GET", key, "")
	if value == "" {
		require.Equal(c.t, 404, code, text)
		return
	}
	require.Equal(c.t, 200, code, text)
	require.Equal(c.t, value, text)
}
