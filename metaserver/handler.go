package metaserver

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"kvferry/core/status"

	"go.uber.org/zap"
)

// Paths beside that of the metadata. They need no token.
const (
	healthPath  = "/health"
	metricsPath = "/metrics"
)

const (
	textKind = "text/plain; charset=utf-8"
	jsonKind = "application/json"
)

// reply is an answer.
type reply struct {
	status int
	kind   string // Content-Type
	body   []byte
	header [2]string // one more field, where it has a name
}

func say(status int, text string) reply {
	return reply{status: status, kind: textKind, body: []byte(text + "\n")}
}

// refused is the answer for an error.
func refused(err error) reply {
	var r *refusal
	if errors.As(err, &r) {
		return say(r.status, r.text)
	}
	return say(http.StatusInternalServerError, err.Error())
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	noteRequest(r)
	var a reply
	err := status.Guard(func() error {
		a = s.answer(w, r)
		return nil
	})
	if err != nil {
		s.log.Error("a request to the metadata server failed", zap.String("client", r.RemoteAddr), zap.Error(err))
		a = say(http.StatusInternalServerError, "internal error")
	}
	s.requests.count(r.Method, a.status)
	header := w.Header()
	header.Set("Content-Type", a.kind)
	if a.header[0] != "" {
		header.Set(a.header[0], a.header[1])
	}
	if s.slots.scarce() {
		header.Set("Connection", "close")
	}
	w.WriteHeader(a.status)
	w.Write(a.body) // an error means that the client has closed the connection
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) reply {
	switch r.URL.Path {
	case s.options.Path:
		if !s.authorized(r) {
			a := say(http.StatusUnauthorized, "a valid bearer token is required")
			a.header = [2]string{"WWW-Authenticate", "Bearer"}
			return a
		}
		if !s.certified(r) {
			return say(http.StatusForbidden, "a client certificate is required")
		}
		return s.metadata(w, r)
	case healthPath:
		return s.probe(r, say(http.StatusOK, "ok"))
	case metricsPath:
		return s.probe(r, reply{status: http.StatusOK, kind: metricsKind, body: s.metrics()})
	}
	return say(http.StatusNotFound, "there is nothing at this path; metadata is at "+s.options.Path)
}

// authorized compares in constant time, so that an attacker learns nothing about the token.
func (s *Server) authorized(r *http.Request) bool {
	if s.options.Token == "" {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare([]byte(token), []byte(s.options.Token)) == 1
}

// probe is the answer at a path that can only be read.
func (s *Server) probe(r *http.Request, a reply) reply {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return notAllowed("GET, HEAD")
	}
	return a
}

func notAllowed(methods string) reply {
	a := say(http.StatusMethodNotAllowed, "method not allowed")
	a.header = [2]string{"Allow", methods}
	return a
}

// metadata answers a request for an entry.
func (s *Server) metadata(w http.ResponseWriter, r *http.Request) reply {
	query, err := queryOf(r.URL.RawQuery)
	if err != nil {
		return refused(err)
	}
	if query.Has("prefix") {
		return s.list(r, query)
	}
	key, err := keyOf(query)
	if err != nil {
		return refused(err)
	}
	done := ""
	switch r.Method {
	case http.MethodGet:
		value, err := s.store.get(key)
		if err != nil {
			return refused(err)
		}
		return reply{status: http.StatusOK, kind: jsonKind, body: value}
	case http.MethodPut:
		done, err = "metadata updated", s.put(w, r, key)
	case http.MethodDelete:
		done, err = "metadata deleted", s.store.remove(key)
	default:
		return notAllowed("GET, PUT, DELETE")
	}
	if err != nil {
		return refused(err)
	}
	return say(http.StatusOK, done)
}

// list answers a request for the keys that begin with a prefix: a page of them, after a key.
func (s *Server) list(r *http.Request, query url.Values) reply {
	if r.Method != http.MethodGet {
		return notAllowed("GET")
	}
	var page struct {
		Keys []string `json:"keys"`
		More bool     `json:"more"` // there are keys after the last one of these
	}
	page.Keys, page.More = s.store.list(query.Get("prefix"), query.Get("after"))
	body, err := json.Marshal(page)
	if err != nil {
		return refused(err)
	}
	return reply{status: http.StatusOK, kind: jsonKind, body: body}
}

func queryOf(text string) (url.Values, error) {
	query, err := url.ParseQuery(text)
	if err != nil {
		err = refuse(http.StatusBadRequest, "the query cannot be read: %v", err)
	}
	return query, err
}

// keyOf finds the key in a query. Space around it does not count.
func keyOf(query url.Values) (string, error) {
	key := strings.TrimSpace(query.Get("key"))
	return key, checkKey(key)
}

// writer is the address in whose share an entry counts. Programs on the server's own machine have no share but the limits:
// other machines cannot take that address.
func writer(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr)
	if at.Addr().Unmap().IsLoopback() {
		return netip.Addr{}
	}
	return at.Addr()
}

// put stores a request's body. One that is too large is refused unread where its length is given.
func (s *Server) put(w http.ResponseWriter, r *http.Request, key string) error {
	if r.ContentLength > s.options.MaxValue {
		return s.store.tooLarge()
	}
	value, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.options.MaxValue))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return s.store.tooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(http.StatusRequestTimeout, "the value did not arrive within %v", requestTimeout)
	case err != nil:
		return refuse(http.StatusBadRequest, "the value cannot be read: %v", err)
	}
	return s.store.put(key, value, writer(r))
}
