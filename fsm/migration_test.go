package fsm

import (
	"fmt"
	"testing"
)

// TestPhasesOfMigrations walks VMs through migrations as they come in life.
func TestPhasesOfMigrations(t *testing.T) {
	type step struct {
		node      string
		phase     Phase
		epoch     uint64
		migration MigrationPhase
		want      string // state phase from>to event, or a code
	}
	for name, steps := range map[string][]step{
		"confirmed at once": {
			{"n1", PhaseRunning, 1, "", "running none vm.observed"},
			{"n2", PhaseIncoming, 2, MigrationArmed, "migrating armed n1>n2 vm.migrating"},
			{"n2", PhaseIncoming, 2, MigrationArmed, "migrating armed n1>n2 none"},
			{"n2", PhaseIncoming, 2, "", "migrating armed n1>n2 none"}, // a report from before
			{"n2", PhaseRunning, 2, "", "running live n1>n2 vm.moved"},
			{"n1", PhaseGone, 2, MigrationSettled, "running settled n1>n2 vm.migration"},
			{"n1", PhaseGone, 2, MigrationSettled, "stale"},
		},
		"confirmed late": {
			{"n1", PhaseRunning, 1, "", "running none vm.observed"},
			{"n2", PhaseIncoming, 2, "", "migrating arming n1>n2 vm.migrating"},
			{"n1", PhaseRunning, 2, "", "migrating arming n1>n2 none"},
			{"n2", PhaseIncoming, 2, MigrationArmed, "migrating armed n1>n2 vm.migration"},
			{"n2", PhaseRunning, 2, "", "running live n1>n2 vm.moved"},
		},
		"called off": {
			{"n1", PhaseRunning, 1, "", "running none vm.observed"},
			{"n2", PhaseIncoming, 2, MigrationArmed, "migrating armed n1>n2 vm.migrating"},
			{"n2", PhaseGone, 2, "", "running aborted n1>n2 vm.migration"},
			{"n1", PhaseGone, 2, MigrationSettled, "stale"},
			{"n2", PhaseIncoming, 3, MigrationArmed, "migrating armed n1>n2 vm.migrating"},
		},
		"the source takes it back": {
			{"n1", PhaseRunning, 1, "", "running none vm.observed"},
			{"n2", PhaseIncoming, 2, "", "migrating arming n1>n2 vm.migrating"},
			{"n1", PhaseRunning, 3, "", "running aborted n1>n2 vm.migration"},
		},
		"to somewhere else": {
			{"n1", PhaseRunning, 1, "", "running none vm.observed"},
			{"n2", PhaseIncoming, 2, MigrationArmed, "migrating armed n1>n2 vm.migrating"},
			{"n3", PhaseIncoming, 3, "", "migrating arming n1>n3 vm.migrating"},
			{"n2", PhaseIncoming, 2, MigrationArmed, "stale"},
			{"n3", PhaseRunning, 3, "", "running live n1>n3 vm.moved"},
			{"n2", PhaseGone, 3, MigrationSettled, "stale"},
			{"n1", PhaseGone, 2, MigrationSettled, "stale"},
			{"n1", PhaseStopped, 3, MigrationSettled, "running settled n1>n3 vm.migration"}, // its definition stays
		},
		"unannounced": {
			{"n1", PhaseRunning, 1, "", "running none vm.observed"},
			{"n2", PhaseRunning, 2, "", "running live n1>n2 vm.moved"},
			{"n1", PhaseGone, 2, MigrationSettled, "running settled n1>n2 vm.migration"},
		},
		"started elsewhere": {
			{"n1", PhaseRunning, 1, "", "running none vm.observed"},
			{"n1", PhaseStopped, 1, "", "stopped none vm.observed"},
			{"n2", PhaseRunning, 2, "", "running none vm.moved"},
		},
		"back before the source has gone": {
			{"n1", PhaseRunning, 1, "", "running none vm.observed"},
			{"n2", PhaseRunning, 2, "", "running live n1>n2 vm.moved"},
			{"n1", PhaseIncoming, 3, MigrationArmed, "migrating armed n2>n1 vm.migrating"},
			{"n1", PhaseGone, 2, MigrationSettled, "stale"},
			{"n1", PhaseRunning, 3, "", "running live n2>n1 vm.moved"},
		},
		"cold": {
			{"n1", PhaseStopped, 1, "", "stopped none vm.observed"},
			{"n2", PhaseIncoming, 2, MigrationArmed, "migrating armed n1>n2 vm.migrating"},
			{"n2", PhaseStopped, 2, "", "stopped settled n1>n2 vm.moved"},
		},
		"cold, and started at once": {
			{"n1", PhaseStopped, 1, "", "stopped none vm.observed"},
			{"n2", PhaseIncoming, 2, MigrationArmed, "migrating armed n1>n2 vm.migrating"},
			{"n2", PhaseRunning, 2, "", "running live n1>n2 vm.moved"},
		},
		"cold, and called off": {
			{"n1", PhaseStopped, 1, "", "stopped none vm.observed"},
			{"n2", PhaseIncoming, 2, MigrationArmed, "migrating armed n1>n2 vm.migrating"},
			{"n2", PhaseGone, 2, "", "stopped aborted n1>n2 vm.migration"},
		},
		"from outside": {
			{"n2", PhaseIncoming, 1, MigrationArmed, "migrating armed >n2 vm.migrating"},
			{"n2", PhaseGone, 1, "", "declared aborted >n2 vm.migration"},
		},
		"nonsense": {
			{"n1", PhaseRunning, 1, MigrationArmed, "invalid"},
			{"n1", PhaseRunning, 1, MigrationSettled, "invalid"},
			{"n1", PhaseIncoming, 1, MigrationLive, "invalid"},
			{"n1", PhaseGone, 1, MigrationSettled, "not_found"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewStore()
			log := newLog(s)
			var last Migration
			for i, step := range steps {
				before := len(s.View().events)
				r := log.do(t, ObserveVM{ID: "v1", Kind: "kvm", Node: step.node, Phase: step.phase, Epoch: step.epoch, Migration: step.migration})
				got := ""
				switch {
				case r.Err != nil:
					got = string(r.Err.Code)
				default:
					got = string(r.VM.State) + " none "
					if m := r.VM.Migration; m != nil {
						got = fmt.Sprintf("%s %s %s>%s ", r.VM.State, m.Phase, m.From, m.To)
						if m.To == last.To && last.Phase.Open() && !m.StartedAt.Equal(last.StartedAt) {
							t.Errorf("step %d: it began at %v, and before at %v", i, m.StartedAt, last.StartedAt)
						}
						if (m.Phase != last.Phase) != m.ChangedAt.After(last.ChangedAt) {
							t.Errorf("step %d: %s since %v, and before %s since %v", i, m.Phase, m.ChangedAt, last.Phase, last.ChangedAt)
						}
						last = *m
					}
					event := "none"
					if events := s.View().events[before:]; len(events) == 1 {
						event = string(events[0].Type)
					}
					got += event
				}
				if got != step.want {
					t.Errorf("step %d, %s on %s at %d: %s, want %s", i, step.phase, step.node, step.epoch, got, step.want)
				}
			}
		})
	}
}
