// Command etcdload puts values into an etcd cluster as fast as a number of writers can, and prints
// the committed puts per second. It is a module of its own so that etcd's client stays out of
// Palisade's dependencies.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func main() {
	endpoints := flag.String("endpoints", "", "comma separated client URLs; the writers are spread over them")
	writers := flag.Int("writers", 64, "concurrent writers")
	connections := flag.Int("connections", 64, "connections that the writers share")
	size := flag.Int("size", 200, "bytes in a value")
	duration := flag.Duration("duration", 10*time.Second, "how long to write")
	flag.Parse()
	if err := run(strings.Split(*endpoints, ","), *writers, *connections, *size, *duration); err != nil {
		fmt.Fprintln(os.Stderr, "etcdload:", err)
		os.Exit(1)
	}
}

func run(endpoints []string, writers, connections, size int, duration time.Duration) error {
	clients := make([]*clientv3.Client, connections)
	for i := range clients {
		c, err := clientv3.New(clientv3.Config{Endpoints: endpoints[i%len(endpoints):][:1], DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			return err
		}
		defer c.Close()
		clients[i] = c
	}
	ctx, cancel := context.WithTimeout(context.Background(), duration+30*time.Second)
	defer cancel()
	var (
		wg    sync.WaitGroup
		done  atomic.Int64
		fault atomic.Pointer[error]
		value = strings.Repeat("x", size)
		start = time.Now()
	)
	for w := range writers {
		wg.Go(func() {
			c := clients[w%len(clients)]
			for i := 0; time.Since(start) < duration; i++ {
				if _, err := c.Put(ctx, fmt.Sprintf("block/%d/%d", w, i), value); err != nil {
					fault.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if err := fault.Load(); err != nil {
		return *err
	}
	fmt.Printf("%.0f\n", float64(done.Load())/time.Since(start).Seconds())
	return nil
}
