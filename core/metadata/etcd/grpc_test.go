package etcd

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"kvferry/core/metadata/kv"
	"kvferry/core/metadata/kv/kvtest"

	"github.com/stretchr/testify/require"
)

// grpc answers with a body and a trailer.
func grpc(body string, trailer map[string]string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		_, _ = io.WriteString(w, body)
		for name, value := range trailer {
			w.Header().Set(http.TrailerPrefix+name, value)
		}
	}
}

var success = map[string]string{"Grpc-Status": "0"}

// hostile are servers that do everything wrong, and what must be in the errors.
var hostile = map[string]struct {
	answer http.HandlerFunc
	says   string
}{
	"a web server": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusNotFound) },
		`HTTP 404 "text/plain; charset=utf-8" instead of gRPC: is it the client port of etcd?`},
	"a proxy": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, "HTTP 502"},
	"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
	}, "HTTP 307"},
	"no status":       {grpc(framed(header), nil), "no status of gRPC"},
	"garbled status":  {grpc(framed(header), map[string]string{"Grpc-Status": "fine"}), `no status of gRPC, but "fine"`},
	"other method":    {grpc("", map[string]string{"Grpc-Status": "12", "Grpc-Message": "unknown service %E2%9C%93"}), `gRPC status 12, "unknown service ✓"`},
	"long-winded":     {grpc("", map[string]string{"Grpc-Status": "2", "Grpc-Message": strings.Repeat("no", 5000)}), "gRPC status 2"},
	"refusal of etcd": {grpc("", map[string]string{"Grpc-Status": "7", "Grpc-Message": "etcdserver: permission denied"}), "a: etcdserver: permission denied"},
	"refusal in front": {func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "7")
		w.Header().Set("Grpc-Message", "etcdserver: permission denied")
	}, "a: etcdserver: permission denied"},
	"no message":      {grpc("", success), "not one message"},
	"compressed":      {grpc("\x01"+framed(header)[1:], success), "not one message"},
	"two messages":    {grpc(framed(header)+framed(header), success), "not one message"},
	"cut message":     {grpc(framed(header)[:10], success), "not one message"},
	"another message": {grpc(framed("hello"), success), "no message of etcd"},
	"endless":         {grpc(strings.Repeat("x", maxReply+prefixLength+1), success), "longer than 1048576 bytes"},
	"endless header": {func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X", strings.Repeat("x", 2*maxResponseHeader))
	}, "connection error"},
	"cut short": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ""},
	"silent":    {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no answer within 400ms"},
	"dripping": {func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		_, _ = io.WriteString(w, "\x00")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}, "no answer within 400ms"},
}

func TestAServerThatMisbehavesGivesAnErrorThatSaysHow(t *testing.T) {
	for name, c := range hostile {
		t.Run(name, func(t *testing.T) {
			server := serveRaw(t, c.answer)
			var o kv.Options
			if strings.HasPrefix(c.says, "no answer") {
				o.Connection = kvtest.Impatient()
			}
			s, err := open("etcd://"+server.address, o)
			require.NoError(t, err)
			defer s.Close()
			_, _, err = s.Get(t.Context(), "a")
			require.Contains(t, kvtest.RequireFailure(t, s, "a", err), c.says)
			require.Less(t, len(err.Error()), 1000)
			kvtest.RequireFailure(t, s, "a", s.Remove(t.Context(), "a", []byte("1")))
		})
	}
}
