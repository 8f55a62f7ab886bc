package httpapi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/palisade/palisade/httpapi/apitest"
)

type fleet = apitest.Fleet

var _ Backend = (*fleet)(nil)

func newFleet(t testing.TB, others ...string) *fleet { return apitest.New(t, others...) }

// The tokens of tests, by scope.
const (
	adminToken    = "admin-secret-0123456789"
	operatorToken = "operator-secret-0123456789"
	viewerToken   = "viewer-secret-0123456789"
	metricsToken  = "metrics-secret-0123456789"
)

func testOptions(f *fleet) Options {
	return Options{
		Backend: f,
		Version: "test",
	}
}

func newServer(t testing.TB, f *fleet, change ...func(*Options)) *Server {
	t.Helper()
	o := testOptions(f)
	for _, c := range change {
		c(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// request is one call of the API in a test.
type request struct {
	method, path, body string
	token              string // adminToken if empty, none if "-"
	header             map[string]string
	from               string // address of the caller
}

func (s *Server) do(t testing.TB, q request) *http.Response {
	t.Helper()
	var body io.Reader
	if q.body != "" {
		body = strings.NewReader(q.body)
	}
	r := httptest.NewRequest(q.method, q.path, body)
	if q.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	switch q.token {
	case "":
		r.Header.Set("Authorization", "Bearer "+adminToken)
	case "-":
	default:
		r.Header.Set("Authorization", "Bearer "+q.token)
	}
	if q.from != "" {
		r.RemoteAddr = q.from
	}
	for k, v := range q.header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w.Result()
}
