package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

// TestDebugBundle: it comes as it was made, one at a time, and one that is cut off is not taken for whole.
func TestDebugBundle(t *testing.T) {
	f := newFleet(t)
	refused(t, newServer(t, f), request{method: "GET", path: "/v1/debug/bundle"}, 404, wire.CodeNotFound)

	var making, most atomic.Int64
	var fail atomic.Bool
	s := newServer(t, f, func(o *Options) {
		o.DebugBundle = func(_ context.Context, w io.Writer) error {
			most.Store(max(most.Load(), making.Add(1)))
			defer making.Add(-1)
			if _, err := w.Write(bytes.Repeat([]byte("bundle"), 10_000)); err != nil {
				return err
			}
			if fail.Load() {
				return errors.New("the disk")
			}
			return nil
		}
	})
	web := httptest.NewServer(s.Handler())
	defer web.Close()
	api, err := client.New(client.Options{URL: web.URL, Token: adminToken})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]bytes.Buffer, 8)
	done := make(chan error)
	for i := range got {
		go func() { done <- api.DebugBundle(t.Context(), &got[i]) }()
	}
	for range got {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for i := range got {
		if got[i].Len() != 60_000 {
			t.Errorf("a bundle has %d bytes", got[i].Len())
		}
	}
	if most.Load() != 1 {
		t.Errorf("%d bundles were made at once", most.Load())
	}
	fail.Store(true)
	if err := api.DebugBundle(t.Context(), io.Discard); err == nil {
		t.Error("half of a bundle was taken for all of it")
	}
	fail.Store(false)
	if err := api.DebugBundle(t.Context(), io.Discard); err != nil {
		t.Errorf("after a failure: %v", err)
	}
}
