package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// service tells the service manager how the agent is, if one asked for it (NOTIFY_SOCKET): ready, alive, and one line of
// what it does. The watchdog is fed only after a look that went through the agent's main loops has come back;
// an agent that hangs is started again. The kernel enforces meanwhile.
type service struct {
	log      *slog.Logger
	every    time.Duration // between two looks; one that takes longer has failed
	watchdog bool
	notify   func(state string) error
	now      atomic.Pointer[look]
}

// look finds out whether the agent is alive, and what it does. A nil look means that the agent is not ready yet.
type look func(ctx context.Context) (status string, err error)

// lookEvery is how often the status line is brought up to date where no watchdog asks for more.
const lookEvery = 20 * time.Second

// newService reads what the service manager put into the environment.
func newService(log *slog.Logger) *service {
	s := &service{log: log, every: lookEvery, notify: func(state string) error {
		_, err := daemon.SdNotify(false, state)
		return err
	}}
	switch limit, err := daemon.SdWatchdogEnabled(false); {
	case err != nil:
		log.Warn("the service manager's watchdog is not understood", "err", err)
	case limit > 0:
		const looks = 3 // within the limit
		s.every, s.watchdog = limit/looks, true
	}
	return s
}

// set says how to look from now on.
func (s *service) set(l look) { s.now.Store(&l) }

// run tells until ctx ends.
func (s *service) run(ctx context.Context) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	const soon = 50 * time.Millisecond // until the agent is ready
	ready, told := false, ""
	for pause := soon; ; {
		if l := s.now.Load(); l != nil {
			status, err := s.look(ctx, *l)
			switch {
			case ctx.Err() != nil:
			case err != nil:
				s.log.Error("the agent does not answer itself", "err", err)
				pause = min(s.every, time.Second)
			case !ready:
				ready, told, pause = true, status, s.every
				s.tell(daemon.SdNotifyReady + "\nSTATUS=" + status)
			default:
				pause = s.every
				if status != told {
					told = status
					s.tell("STATUS=" + status)
				}
			}
			if err == nil && ready && s.watchdog {
				s.tell(daemon.SdNotifyWatchdog)
			}
		}
		if !sleep(ctx, pause) {
			s.tell(daemon.SdNotifyStopping + "\nSTATUS=stopping; the kernel goes on enforcing")
			return
		}
	}
}

func (s *service) look(ctx context.Context, l look) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.every)
	defer cancel()
	return l(ctx)
}

func (s *service) tell(state string) {
	if err := s.notify(state); err != nil {
		s.log.Warn("can't tell the service manager", "err", err)
	}
}

// lookAround goes through the loop that enforces, the cluster's standing, and the API on its Unix socket.
func (a *Agent) lookAround(r *rooms) look {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", a.cfg.API.Socket)
	}
	api := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	return func(ctx context.Context) (string, error) {
		if err := r.enforcer.Alive(ctx); err != nil {
			return "", fmt.Errorf("the loop that enforces: %w", err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/healthz", http.NoBody)
		if err != nil {
			return "", err
		}
		res, err := api.Do(req)
		if err != nil {
			return "", fmt.Errorf("the API: %w", err)
		}
		_, err = io.Copy(io.Discard, res.Body)
		if err = errors.Join(err, res.Body.Close()); err != nil {
			return "", fmt.Errorf("the API: %w", err)
		}
		st := r.cluster.Status()
		enforced, problem := r.enforcer.Standing()
		role := "no quorum; enforcing what was agreed"
		switch {
		case st.Quorum && st.Leader == st.Node:
			role = "leads"
		case st.Quorum:
			role = "follows " + st.Leader
		}
		text := fmt.Sprintf("%s; log index %d, enforced %d", role, st.Applied, enforced)
		if problem != "" {
			text += "; " + problem
		}
		return oneLine(text), nil
	}
}

// oneLine keeps a status from being more than one: each line of a notification is an assignment.
func oneLine(s string) string {
	const most = 300
	b := []byte(s[:min(len(s), most)])
	for i := range b {
		if b[i] < ' ' {
			b[i] = ' '
		}
	}
	return string(b)
}
