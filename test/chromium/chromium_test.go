package chromium

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"golang.org/x/sys/unix"
)

// TestABrowserOutlivesTheThreadThatStartsIt: the tests of the fleet end threads that were in other namespaces.
func TestABrowserOutlivesTheThreadThatStartsIt(t *testing.T) {
	var browser *Browser
	var err error
	done := make(chan struct{})
	var start func()
	start = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the first thread does not end: it is held, so that the next is another
			go start()
			<-done
			runtime.UnlockOSThread()
			return
		}
		browser, err = Start(context.Background(), 45*time.Second, nil)
		close(done) // the thread ends with the goroutine
	}
	go start()
	if <-done; err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && err == nil; {
		err = chromedp.Run(browser.Page, chromedp.Evaluate("1", new(int)))
	}
	if err := errors.Join(err, browser.Close()); err != nil {
		t.Error(err)
	}
}
