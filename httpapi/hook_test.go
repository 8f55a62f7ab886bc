package httpapi

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/palisade/palisade/httpapi/wire"
)

// The hook is for root on the node. That no token and no session admits to it, TestEveryRouteWithEveryCredential tries.
func TestTheHookIsAnsweredOnTheSocketAlone(t *testing.T) {
	f := newFleet(t)
	var calls []wire.LibvirtHook
	s := serve(t, f, func(o *Options) {
		o.LibvirtHook = func(_ context.Context, call wire.LibvirtHook) wire.LibvirtAnswer {
			calls = append(calls, call)
			return wire.LibvirtAnswer{State: wire.HookRefused, Reason: "no"}
		}
	})
	c := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", s.socket) }}}
	defer c.CloseIdleConnections()
	ask := func(body string) *http.Response {
		t.Helper()
		res, err := c.Post("http://x/v1/local/libvirt", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		return res
	}
	a := decode[wire.LibvirtAnswer](t, ask(`{"guest":"web","operation":"migrate","xml":"<domain/>"}`), 200)
	if a.Allow || a.State != wire.HookRefused || a.Reason != "no" || len(calls) != 1 || calls[0].Guest != "web" || calls[0].XML != "<domain/>" {
		t.Errorf("answered %+v to %+v", a, calls)
	}
	for _, body := range []string{`{"guest":"web","operation":"start","xml":""}`, `{"guest":"web","operation":"migrate","xml":"` + strings.Repeat("x", 1<<20) + `"}`} {
		if res := ask(body); res.StatusCode < 400 || res.StatusCode >= 500 {
			t.Errorf("%.60s: %s", body, res.Status)
		}
	}
	packed, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x/v1/local/libvirt", strings.NewReader("\x1f\x8b"))
	if err != nil {
		t.Fatal(err)
	}
	packed.Header.Set("Content-Encoding", "gzip")
	res, err := c.Do(packed)
	if err != nil {
		t.Fatal(err)
	}
	if _ = res.Body.Close(); res.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("a compressed body: %s", res.Status)
	}
	if len(calls) != 1 {
		t.Errorf("%d calls", len(calls))
	}
}
