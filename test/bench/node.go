package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"time"
)

// node prints what the tests of one crowded node measure: real taps, 100,000 VMs in the state, the real
// kernel in a namespace. The same tests assert the ratios.
func (b *bench) node(ctx context.Context) error {
	b.say("one node with a thousand guests")
	cmd := exec.CommandContext(ctx, "go", "test", "-tags", "hashicorpmetrics", "-count=1", "-v", "-run", "ThousandGuests", "./enforce", "./enforce/nft", "./agent")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line := regexp.MustCompile(`scale_test\.go:\d+: figure: (.*): (\S+)$`)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		m := line.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		d, err := time.ParseDuration(m[2])
		if err != nil {
			return errors.Join(err, cmd.Wait())
		}
		b.report(m[1], float64(d.Nanoseconds())/1e3, "us", "")
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("scale of one node: %w", err)
	}
	return nil
}
