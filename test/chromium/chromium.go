// Package chromium starts Debian's Chromium for tests and measurements of the page that nodes serve.
package chromium

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/chromedp/chromedp"
)

// Browser is a running Chromium with one empty page and a profile of its own: it shares no cookies with others, as if on
// another machine.
type Browser struct {
	// Page is what chromedp runs actions in. It has no deadline, which would be the browser's.
	Page context.Context //nolint:containedctx // chromedp keeps the page in a context

	end, stop context.CancelFunc
	profile   string
}

// Start starts a browser, which has wait to come up, and is killed when the context ends. listen hears the events of its page, and may be nil; it must not block.
func Start(ctx context.Context, wait time.Duration, listen func(any)) (*Browser, error) {
	binary, err := exec.LookPath("chromium")
	if err != nil {
		return nil, fmt.Errorf("chromium is not installed; deploy/install-deps.sh test does that: %w", err)
	}
	profile, err := os.MkdirTemp("", "palisade-browser-")
	if err != nil {
		return nil, err
	}
	alloc, stop := chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(binary), chromedp.UserDataDir(profile), chromedp.NoSandbox, // namespaces need root
		chromedp.CombinedOutput(io.Discard), // read to the end: it must not fail to write
		chromedp.IgnoreCertErrors,           // the fleet's authority is not one of the browser's
		chromedp.Flag("lang", "en-US"), chromedp.WSURLReadTimeout(wait),
	)...)
	page, end := chromedp.NewContext(alloc)
	b := &Browser{Page: page, end: end, stop: stop, profile: profile}
	if listen != nil {
		chromedp.ListenTarget(page, listen)
	}
	if err := launch(page); err != nil {
		return nil, errors.Join(fmt.Errorf("start chromium: %w", err), b.Close())
	}
	return b, nil
}

// launch starts the browser of a context. The kernel kills it when the thread ends that started it, so that none is left behind by
// a process that is killed; so that thread is kept until the context ends. Others do end: those that were in a namespace.
func launch(page context.Context) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := chromedp.Run(page)
		started <- err
		if err == nil {
			<-page.Done()
		}
	}()
	return <-started
}

// Close ends the browser and removes its profile. It waits for both, at most a minute for the second: processes of the
// browser that outlive it for a moment still write there.
func (b *Browser) Close() error {
	_ = chromedp.Cancel(b.Page) // closes the browser, and waits for it
	b.end()
	b.stop()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := os.RemoveAll(b.profile)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}
