package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// activated returns the sockets that a service manager passed (sd_listen_fds): those named "api", or all of them if none has
// a name. It clears the environment so that no child inherits them. The caller closes them.
func activated() []*os.File {
	defer func() {
		for _, k := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_ = os.Unsetenv(k)
		}
	}()
	if pid := os.Getenv("LISTEN_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return nil // meant for another process
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n <= 0 {
		return nil
	}
	var names []string
	if s := os.Getenv("LISTEN_FDNAMES"); s != "" {
		names = strings.Split(s, ":")
	}
	var out []*os.File
	for i := range n {
		const first = 3 // SD_LISTEN_FDS_START
		f := os.NewFile(uintptr(first+i), "activated")
		if i < len(names) && names[i] != "api" {
			_ = f.Close()
			continue
		}
		unix.CloseOnExec(first + i)
		out = append(out, f)
	}
	return out
}

// listenAPI opens the TCP listeners of the API, which all speak TLS. They outlive ctx. The sockets that were passed stay
// open for the next time.
func listenAPI(ctx context.Context, address string, conf *tls.Config, passed []*os.File) ([]net.Listener, error) {
	var lns []net.Listener
	for i, f := range passed {
		ln, err := net.FileListener(f)
		if err != nil {
			closeAll(lns)
			return nil, fmt.Errorf("socket %d passed by the service manager is no listening socket: %w", i, err)
		}
		lns = append(lns, ln)
	}
	if address != "" {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			closeAll(lns)
			return nil, fmt.Errorf("api.listen: %w", err)
		}
		lns = append(lns, ln)
	}
	for i, ln := range lns {
		lns[i] = tls.NewListener(ln, conf)
	}
	return lns, nil
}

// listenSocket opens the Unix socket of the local command line, readable by root alone. A socket file
// that a dead agent left is replaced; one that is answered is not. The listener outlives ctx.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("api.socket: %w", err)
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = c.Close()
		return nil, fmt.Errorf("api.socket: another agent answers on %s", path)
	case errors.Is(err, os.ErrNotExist):
	case errors.Is(err, unix.ECONNREFUSED):
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("api.socket: %w", err)
		}
	default: // an agent too busy to answer, or ctx ended: it is not known to be dead
		return nil, fmt.Errorf("api.socket: %w", err)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("api.socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("api.socket: %w", err)
	}
	return ln, nil
}

func closeAll(lns []net.Listener) {
	for _, ln := range lns {
		_ = ln.Close()
	}
}
