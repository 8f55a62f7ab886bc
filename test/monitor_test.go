package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

const (
	rulesDir  = "../deploy/prometheus"
	dashboard = "../deploy/grafana/palisade.json"
	monitorMD = "../docs/monitoring.md"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func promtool(t *testing.T, input io.Reader, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "promtool", args...)
	cmd.Dir, cmd.Stdin = rulesDir, input
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("FAILED")) || input != nil && len(out) > 0 {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestAlertRules: the rules are right by promtool's tests, which see each fire and not fire, and every alert says in the
// docs what to do.
func TestAlertRules(t *testing.T) {
	promtool(t, nil, "check", "rules", "palisade.rules.yml")
	promtool(t, nil, "test", "rules", "palisade.rules_test.yml")
	rules, tests, docs := read(t, filepath.Join(rulesDir, "palisade.rules.yml")), read(t, filepath.Join(rulesDir, "palisade.rules_test.yml")), read(t, monitorMD)
	names := regexp.MustCompile(`(?m)alert: (\w+)$`).FindAllStringSubmatch(rules, -1)
	for _, m := range names {
		for what, in := range map[string]string{
			"  - name: " + m[1] + " fires\n": tests, "  - name: " + m[1] + " does not fire\n": tests, "\n### " + m[1] + "\n": docs,
			"docs/monitoring.md#" + strings.ToLower(m[1]) + "\n": rules,
		} {
			if !strings.Contains(in, what) {
				t.Errorf("%s: no %q", m[1], what)
			}
		}
	}
	if described := strings.Count(docs, "\n### Palisade"); described != len(names) || len(names) == 0 {
		t.Errorf("%d alerts, the docs describe %d", len(names), described)
	}
}

// prometheus is a Prometheus that scrapes a fleet.
type prometheus struct{ url string }

// startPrometheus starts Debian's Prometheus on loopback, with the rules of deploy, and ends it with the test.
func startPrometheus(t *testing.T, l *lab) *prometheus {
	t.Helper()
	dir := t.TempDir()
	var made struct{ Secret string }
	res := l.raw(t, l.alive(t), "POST", "/v1/tokens", `{"name":"prometheus","scope":"metrics"}`)
	if err := json.Unmarshal(res.body, &made); err != nil || made.Secret == "" {
		t.Fatalf("no token for Prometheus: %d %v %s", res.status, err, res.body)
	}
	targets := []string{}
	for _, n := range l.Nodes() {
		u, err := url.Parse(n.API)
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, u.Host)
	}
	rules, err := filepath.Abs(filepath.Join(rulesDir, "palisade.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	secret, config := filepath.Join(dir, "token"), filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: palisade
    scheme: https
    authorization: {credentials_file: %q}
    tls_config: {ca_file: %q}
    static_configs: [{targets: [%s]}]
`, rules, secret, l.CAFile(), strings.Join(targets, ", "))
	for path, content := range map[string]string{secret: made.Secret, config: text} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	promtool(t, nil, "check", "config", config)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Prometheus said:\n%s", &out)
		}
	})
	p := &prometheus{url: "http://" + addr}
	l.Eventually(t, "Prometheus is ready", func() error {
		_, err := p.get(t.Context(), "/-/ready", nil)
		return err
	})
	return p
}

func (p *prometheus) get(ctx context.Context, path string, q url.Values) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path+"?"+q.Encode(), http.NoBody)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, b)
	}
	return b, err
}

// query returns the values that an expression has now, NaN left out.
func (p *prometheus) query(ctx context.Context, expr string) ([]string, error) {
	b, err := p.get(ctx, "/api/v1/query", url.Values{"query": {expr}})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	var r struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  []any
			}
		}
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	var out []string
	for _, s := range r.Data.Result {
		if v := fmt.Sprint(s.Value[1]); v != "NaN" {
			out = append(out, v)
		}
	}
	return out, nil
}

// panelQueries are the expressions of the dashboard, by panel, with its variables filled in.
func panelQueries(t *testing.T) map[string][]string {
	t.Helper()
	var d struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, dashboard)), &d); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("$job", "palisade", "$instance", ".*", "$__rate_interval", "5m")
	out := map[string][]string{}
	for _, p := range d.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q has no query", p.Title)
		}
		for _, q := range p.Targets {
			expr := fill.Replace(q.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("panel %q: a variable is left in %s", p.Title, expr)
			}
			out[p.Title] = append(out[p.Title], expr)
		}
	}
	return out
}

// TestPrometheusReadsTheFleet: a real Prometheus scrapes a real fleet. Every query of the dashboard has data, but for
// those of which it is known; all rules are evaluated; an agent that ends is seen; the metrics are as
// promtool wants them, and those of the docs.
func TestPrometheusReadsTheFleet(t *testing.T) {
	l := sharedLab(t)
	p := startPrometheus(t, l)
	defer func() { l.raw(t, l.alive(t), "DELETE", "/v1/tokens/prometheus", "") }()
	follower, leader := l.follower(t)

	flows := l.Flows(t)
	victims := flows.UDP("guest1", "guest2")
	flows.Passing(victims)
	b, _ := l.Block(t, leader, client.Target{VM: "guest1"})
	defer l.Lift(t, leader, b.ID)
	defer keepBusy(t, l, leader)()

	// What lasts while a fleet is well has nothing to show.
	empty := map[string]bool{"Problems by node": true}
	for title, queries := range panelQueries(t) {
		for _, expr := range queries {
			if empty[title] {
				if _, err := p.query(t.Context(), expr); err != nil {
					t.Errorf("%s: %v", title, err)
				}
				continue
			}
			l.Eventually(t, fmt.Sprintf("panel %q has data", title), func() error {
				values, err := p.query(t.Context(), expr)
				if err == nil && len(values) == 0 {
					err = fmt.Errorf("nothing for %s", expr)
				}
				return err
			})
		}
	}
	l.Eventually(t, "the dropped packets of guest1 are counted", func() error {
		values, err := p.query(t.Context(), `sum(palisade_dropped_packets_total) > 0`)
		if err == nil && len(values) == 0 {
			err = errors.New("none")
		}
		return err
	})
	metrics := string(l.raw(t, leader, "GET", "/metrics", "").body)
	promtool(t, strings.NewReader(metrics), "check", "metrics")
	documented(t, metrics)
	p.rules(t, l, "")

	if err := l.KillAgent(t.Context(), follower, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.rules(t, l, "PalisadeNodeDown")
	if err := l.StartAgent(t.Context(), follower); err != nil {
		t.Fatal(err)
	}
	if err := l.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// keepBusy does something of everything over and over: writes, due times, lists, refusals. The function that it
// returns ends that.
func keepBusy(t *testing.T, l *lab, node string) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	c := l.Clients[node]
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			// What fails leaves a panel without data, which is what the test looks for.
			b, err := c.AddBlock(ctx, client.BlockRequest{Target: client.Target{Prefix: "203.0.113.9"}, StartsAt: time.Now().Add(300 * time.Millisecond)}, client.Write{})
			_, _ = c.PutList(ctx, "monitored", strings.NewReader(fmt.Sprintf("203.0.113.%d\n", 64+i%64)), client.ListPut{})
			_, _ = c.VM(ctx, "nobody")
			select {
			case <-time.After(600 * time.Millisecond):
			case <-ctx.Done():
			}
			if err == nil {
				_, _ = c.LiftBlock(context.WithoutCancel(ctx), b.Block.ID, client.Write{})
			}
		}
	}()
	return func() {
		cancel()
		<-done
		l.raw(t, node, "DELETE", "/v1/lists/monitored", "")
	}
}

// rules waits until all rules were evaluated without an error and the alert named, if any, is pending or fires.
func (p *prometheus) rules(t *testing.T, l *lab, alert string) {
	t.Helper()
	l.Eventually(t, "the rules are evaluated "+alert, func() error {
		b, err := p.get(t.Context(), "/api/v1/rules", nil)
		if err != nil {
			return err
		}
		var r struct {
			Data struct {
				Groups []struct {
					Rules []struct{ Name, State, Health, LastError string }
				}
			}
		}
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		n, seen := 0, alert == ""
		for _, g := range r.Data.Groups {
			for _, rule := range g.Rules {
				if n++; rule.Health != "ok" {
					return fmt.Errorf("%s: %s %s", rule.Name, rule.Health, rule.LastError)
				}
				seen = seen || rule.Name == alert && rule.State != "inactive"
			}
		}
		if n == 0 || !seen {
			return fmt.Errorf("%d rules, %q is inactive", n, alert)
		}
		return nil
	})
}

// documented compares the metrics of a node with the table of the docs.
func documented(t *testing.T, metrics string) {
	t.Helper()
	names := func(form, text string) []string {
		var out []string
		for _, m := range regexp.MustCompile(form).FindAllStringSubmatch(text, -1) {
			out = append(out, m[1])
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	scraped, docs := names(`(?m)^# TYPE (palisade_\w+) `, metrics), names("(?m)^\\| `(palisade_\\w+)`", read(t, monitorMD))
	for _, name := range scraped {
		if !slices.Contains(docs, name) {
			t.Errorf("docs/monitoring.md has no line for %s", name)
		}
	}
	for _, name := range docs {
		if !slices.Contains(scraped, name) {
			t.Errorf("docs/monitoring.md has %s, which is no metric of a node that has seen everything", name)
		}
	}
}
