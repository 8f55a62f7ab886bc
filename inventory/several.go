package inventory

import (
	"context"
	"log/slog"
	"slices"
	"sync"
)

// several is a node with more than one hypervisor.
type several struct {
	log     *slog.Logger
	drivers []Driver

	mu      sync.Mutex // guards below, and makes reports one at a time
	last    []Report   // by driver
	given   []bool     // the driver has reported
	doubled map[string]bool
}

// Several returns a driver that reports what all of the drivers report. Until the last of them has reported
// for the first time it says nothing: what is not in a report is not on this node. A VM that two of them
// report is taken from the one that is named first.
func Several(log *slog.Logger, drivers ...Driver) Driver {
	return &several{log: log, drivers: drivers, last: make([]Report, len(drivers)), given: make([]bool, len(drivers)), doubled: map[string]bool{}}
}

// Run meets Driver. If one of the drivers can't work at all, the others are ended.
func (s *several) Run(ctx context.Context, report func(Report)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(s.drivers))
	var wg sync.WaitGroup
	for i, d := range s.drivers {
		wg.Go(func() {
			errs[i] = d.Run(ctx, func(r Report) { s.take(i, r, report) })
			if errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// take notes the report of one driver and passes on what all of them say. Arrivals of a driver that had to
// wait for another are kept for the first report.
func (s *several) take(i int, r Report, report func(Report)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.given[i] || slices.Contains(s.given, false) {
		r.Arrived = append(slices.Clone(s.last[i].Arrived), r.Arrived...)
	}
	s.last[i], s.given[i] = r, true
	if slices.Contains(s.given, false) {
		return
	}
	all := Report{Found: r.Found}
	owner := make(map[string]int)
	for d, r := range s.last {
		for _, vm := range r.VMs {
			if first, taken := owner[vm.ID]; taken {
				if !s.doubled[vm.ID] && first != d {
					s.doubled[vm.ID] = true
					s.log.Warn("two inventories of this node report the same VM; the one that is named first in the config counts", "vm", vm.ID)
				}
				continue
			}
			owner[vm.ID] = d
			all.VMs = append(all.VMs, vm)
		}
	}
	for d := range s.last {
		for _, id := range s.last[d].Arrived {
			if of, ok := owner[id]; ok && of == d && !slices.Contains(all.Arrived, id) {
				if at := slices.IndexFunc(s.last[d].VMs, func(v VM) bool { return v.ID == id }); s.last[d].VMs[at].Here() {
					all.Arrived = append(all.Arrived, id)
				}
			}
		}
		s.last[d].Arrived = nil
	}
	Sort(all.VMs)
	slices.Sort(all.Arrived)
	report(all)
}
