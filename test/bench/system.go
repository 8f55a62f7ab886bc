package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// usage reads the CPU time and the resident memory of a process.
func usage(pid int) (cpu time.Duration, rss int64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// After the name, which may hold anything: field 3 is the state, 14 and 15 the times in ticks.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 22 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %q", pid, stat)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, 0, err
		}
		ticks += n
	}
	pages, err := strconv.ParseInt(fields[21], 10, 64)
	const tick = 10 * time.Millisecond // USER_HZ is 100 on Linux
	return time.Duration(ticks) * tick, pages * int64(os.Getpagesize()), err
}

// etcdCluster is three members on loopback, with their data on the disk that the fleet uses.
type etcdCluster struct {
	members   []*exec.Cmd
	endpoints []string
}

func startEtcd(ctx context.Context, dir string) (*etcdCluster, error) {
	c := &etcdCluster{}
	var initial []string
	for i := range 3 {
		initial = append(initial, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, 23800+i))
	}
	for i := range 3 {
		name, peer, clientURL := fmt.Sprintf("m%d", i), fmt.Sprintf("http://127.0.0.1:%d", 23800+i), fmt.Sprintf("http://127.0.0.1:%d", 23790+i)
		data := filepath.Join(dir, name)
		if err := os.MkdirAll(data, 0o700); err != nil {
			c.stop()
			return nil, err
		}
		cmd := exec.CommandContext(ctx, "etcd", "--name", name, "--data-dir", data,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--listen-client-urls", clientURL, "--advertise-client-urls", clientURL,
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new", "--log-level", "error")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			c.stop()
			return nil, fmt.Errorf("start etcd: %w", err)
		}
		c.members, c.endpoints = append(c.members, cmd), append(c.endpoints, clientURL)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		probe := exec.CommandContext(ctx, "etcdctl", "--endpoints", strings.Join(c.endpoints, ","), "endpoint", "health")
		probe.Env = append(os.Environ(), "ETCDCTL_API=3")
		out, err := probe.CombinedOutput()
		if err == nil {
			return c, nil
		}
		if time.Now().After(deadline) {
			c.stop()
			return nil, fmt.Errorf("etcd is not healthy after 30 s: %w\n%s", err, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// rate returns the puts a second of 64 writers.
func (c *etcdCluster) rate(ctx context.Context, load string, span time.Duration) (float64, error) {
	out, err := exec.CommandContext(ctx, load, "--endpoints", strings.Join(c.endpoints, ","), "--writers", strconv.Itoa(writers),
		"--size", strconv.Itoa(payloadBytes), "--duration", span.String()).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}

// payloadBytes is the size of etcd's values: about that of a block's log entry.
const payloadBytes = 100

func (c *etcdCluster) stop() {
	for _, m := range c.members {
		_ = m.Process.Kill()
		_ = m.Wait()
	}
}
