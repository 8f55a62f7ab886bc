package cluster

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A call from a peer that speaks no version of ours is refused before anything is done, and says who is to be upgraded.
func TestPeersOfOtherProtocolsAreRefused(t *testing.T) {
	for theirs, want := range map[string]struct {
		status int
		says   string
	}{
		"":      {http.StatusNotFound, ""}, // before there were versions: the mux behind is asked
		"1-1":   {http.StatusUpgradeRequired, "upgrade the calling node"},
		"1-2":   {http.StatusOK, ""},
		"3-7":   {http.StatusOK, ""},
		"4-7":   {http.StatusUpgradeRequired, "upgrade this node"},
		"2":     {http.StatusBadRequest, "bad"},
		"3-2":   {http.StatusBadRequest, "bad"},
		"0-9":   {http.StatusBadRequest, "bad"},
		"a-b":   {http.StatusBadRequest, "bad"},
		"-1-2":  {http.StatusBadRequest, "bad"},
		"1-2-3": {http.StatusBadRequest, "bad"},
	} {
		own := protocols{2, 3}
		acted := false
		if theirs == "" {
			own = protocols{1, 3}
		}
		h := understood(own, "v9", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			acted = true
			if theirs == "" {
				w.WriteHeader(http.StatusNotFound)
			}
		}))
		req := httptest.NewRequest(http.MethodPost, "/v1/hello", http.NoBody)
		if theirs != "" {
			req.Header.Set(protocolHeader, theirs)
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		if rec.Code != want.status || !strings.Contains(rec.Body.String(), want.says) {
			t.Errorf("%q: %d %q, want %d with %q", theirs, rec.Code, rec.Body, want.status, want.says)
		}
		if passed := want.status == http.StatusOK || theirs == ""; acted != passed {
			t.Errorf("%q: acted %t", theirs, acted)
		}
	}
	if p, ok := parseProtocols(ownProtocols().String()); !ok || p != ownProtocols() {
		t.Errorf("our own range is not understood: %v", p)
	}
}
