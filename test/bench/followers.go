package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// followers measures how a block spreads to 10, 100 and 1,000 peers. Those are the simulation of the tests of
// package cluster: real code, a simulated network and disks, virtual time.
func (b *bench) followers(ctx context.Context) error {
	b.say("simulating 10, 100 and 1,000 peers")
	file := filepath.Join(b.dir, "followers.json")
	cmd := exec.CommandContext(ctx, "go", "test", "-tags", "hashicorpmetrics", "-count=1", "-timeout=20m", "-run=^TestManyPeers$", "./cluster")
	cmd.Env = append(os.Environ(), "PALISADE_SIMULATE=10,100,1000", "PALISADE_FIGURES="+file)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var all []struct {
		Peers     int     `json:"peers"`
		Depth     int     `json:"depth"`
		Spread    float64 `json:"spread_ms"`
		SpreadMax float64 `json:"spread_max_ms"`
		Messages  float64 `json:"messages_per_write"`
		Bytes     float64 `json:"bytes_per_write"`
		LeadMsgs  float64 `json:"leader_messages_per_write"`
		LeadBytes float64 `json:"leader_bytes_per_write"`
		LeadIdle  float64 `json:"leader_idle_messages_per_s"`
		LeadCPU   float64 `json:"leader_cpu_us_per_write"`
		OtherCPU  float64 `json:"other_cpu_us_per_write"`
		Resume    float64 `json:"resume_max_ms"`
		Killed    int     `json:"killed"`
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, f := range all {
		name := func(what string) string { return fmt.Sprintf("%d peers: %s", f.Peers, what) }
		b.report(name("levels below the voters"), float64(f.Depth), "", "")
		b.report(name("a block in all state machines, virtual, median"), f.Spread, "ms", "")
		b.report(name("the same, worst"), f.SpreadMax, "ms", "")
		b.report(name("messages a write, all nodes"), f.Messages, "", "")
		b.report(name("bytes a write, all nodes"), f.Bytes, "", "")
		b.report(name("messages a write, leader"), f.LeadMsgs, "", "the same for any number")
		b.report(name("bytes a write, leader"), f.LeadBytes, "", "the same for any number")
		b.report(name("messages a second, idle leader"), f.LeadIdle, "", "the same for any number")
		b.report(name("CPU a write, leader"), f.LeadCPU, "us", "the same for any number")
		b.report(name("CPU a write, another node"), f.OtherCPU, "us", "")
		b.report(name(fmt.Sprintf("longest gap of a follower, %d inner nodes killed", f.Killed)), f.Resume, "ms", "4000")
	}
	return nil
}
