package page

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTheKernelSaysWhatWasWanted redirects connections to other addresses with nftables, in a network
// namespace of its own, and asks the kernel for what they were.
func TestTheKernelSaysWhatWasWanted(t *testing.T) {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread and its namespace end with the goroutine
		failed <- redirected(t.Context())
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

func redirected(ctx context.Context) (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for _, args := range []string{
		"ip link set lo up",
		"ip addr add 203.0.113.7/32 dev lo",
		"ip addr add 2001:db8::7/128 dev lo nodad",
		"nft add table inet t",
		"nft add chain inet t out { type nat hook output priority -100 ; }",
		"nft add rule inet t out tcp dport 80 redirect to :8079",
	} {
		if out, err := exec.CommandContext(ctx, "sh", "-c", strings.ReplaceAll(strings.ReplaceAll(args, "{", "'{"), "}", "}'")).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", args, err, out)
		}
	}
	asked := make(chan netip.Addr, 10)
	s, err := New(Options{Lookup: func(a netip.Addr) (Hold, bool) { asked <- a; return Hold{Title: "it was " + a.String()}, true }})
	if err != nil {
		return err
	}
	var listeners []net.Listener
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := net.Listen(network, ":8079")
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, listeners...) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-ended)
	}()
	for _, wanted := range []string{"203.0.113.7", "2001:db8::7"} {
		body, err := fetch(net.JoinHostPort(wanted, "80"))
		if err != nil {
			return fmt.Errorf("%s: %w", wanted, err)
		}
		if a := <-asked; a.String() != wanted || !strings.Contains(body, "it was "+wanted) {
			return fmt.Errorf("%s was taken for %s", wanted, a)
		}
		if body, err := fetch(net.JoinHostPort(wanted, "8079")); err == nil {
			return fmt.Errorf("a connection to the port itself was answered: %s", body)
		}
	}
	return nil
}

// fetch dials in this thread, which is in the namespace.
func fetch(address string) (string, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, get("/")); err != nil {
		return "", err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}
