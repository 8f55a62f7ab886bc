// Command libvirt-hook is "palisade hook libvirt" alone: a small program starts faster, and libvirt waits for it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/palisade/palisade/internal/hook"
)

func main() { os.Exit(mainCode()) }

func mainCode() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	call, ok := hook.Parse(os.Args[1:])
	if !ok {
		fmt.Fprintln(os.Stderr, "usage: libvirt-hook [--config FILE] GUEST OPERATION SUB-OPERATION EXTRA")
		return 2
	}
	return call.Exit(ctx, os.Stdin, os.Stderr)
}
