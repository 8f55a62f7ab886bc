package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Type types a line at the serial console of a QEMU guest, where a shell runs, and returns when it has been run.
func (f *Fleet) Type(ctx context.Context, guest, line string) error {
	g, err := f.Guest(guest)
	if err != nil {
		return err
	}
	n, err := f.Node(g.Node)
	if err != nil {
		return err
	}
	out, err := f.virsh(ctx, n, "ttyconsole", g.VM)
	if err != nil {
		return err
	}
	path := strings.TrimSpace(string(out))
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("console of %s, %s: %w", guest, path, err)
	}
	tty := os.NewFile(uintptr(fd), path)
	defer func() { _ = tty.Close() }()
	if _, err := tty.WriteString(line + "; echo it is do''ne\n"); err != nil { // the echo of the line itself is not "done"
		return err
	}
	var said []byte
	return until(ctx, time.Minute, 20*time.Millisecond, func() error {
		b := make([]byte, 4096)
		if n, err := unix.Read(fd, b); err == nil {
			said = append(said, b[:n]...)
		} else if !errors.Is(err, unix.EAGAIN) {
			return permanent{err}
		}
		if !bytes.Contains(said, []byte("it is done")) {
			return fmt.Errorf("the console of %s said %q to %q", guest, said, line)
		}
		return nil
	})
}
