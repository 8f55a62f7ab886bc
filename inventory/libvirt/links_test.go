package libvirt

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLinksHint(t *testing.T) {
	ns := fmt.Sprintf("links%d", os.Getpid())
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ip("netns", "add", ns)
	defer ip("netns", "del", ns)

	// A thread of its own enters the namespace and ends with its goroutine.
	made := make(chan *links)
	failed := make(chan error, 1)
	var enter func()
	enter = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the first thread can't end
			next := make(chan struct{})
			go func() { defer close(next); enter() }()
			<-next
			runtime.UnlockOSThread()
			return
		}
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err != nil {
			failed <- err
			return
		}
		made <- watchLinks()
	}
	go enter()
	var l *links
	select {
	case err := <-failed:
		t.Fatal(err)
	case l = <-made:
	}
	defer l.close()
	ip("-n", ns, "link", "add", "tap0", "type", "veth", "peer", "name", "x")
	select {
	case <-l.changed:
	case <-time.After(10 * time.Second):
		t.Error("an interface that appeared gave no hint")
	}
}
