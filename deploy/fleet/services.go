package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// ServeGuest is what a light guest runs: echo on UDP and TCP port 7, and HTTP on port 80, over IPv4
// and IPv6. It returns when ctx ends or a port cannot be had.
func ServeGuest(ctx context.Context, name string) error {
	packets, err := net.ListenUDP("udp", &net.UDPAddr{Port: 7})
	if err != nil {
		return err
	}
	defer func() { _ = packets.Close() }()
	if err := packets.SetReadBuffer(8 << 20); err != nil {
		return err
	}
	var listen net.ListenConfig
	echo, err := listen.Listen(ctx, "tcp", ":7")
	if err != nil {
		return err
	}
	defer func() { _ = echo.Close() }()
	web, err := listen.Listen(ctx, "tcp", ":80")
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "hello from %s\n", name)
	})}

	var group sync.WaitGroup
	defer group.Wait()
	stop := context.AfterFunc(ctx, func() {
		_, _, _ = packets.Close(), echo.Close(), server.Close()
	})
	defer stop()
	group.Go(func() { echoPackets(packets) })
	group.Go(func() { echoStreams(ctx, echo) })
	err = server.Serve(web)
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	_, _ = packets.Close(), echo.Close()
	return err
}

func echoPackets(c *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

func echoStreams(ctx context.Context, l net.Listener) {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		group.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			_, _ = io.Copy(c, c)
			_ = c.Close()
		})
	}
}
