package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
	"github.com/palisade/palisade/pki"
)

const testFleet = "0123456789abcdef"

// authorityFleet is the side of the cluster in a test of the renewer: a state, and an authority that signs.
type authorityFleet struct {
	t     *testing.T
	store *fsm.Store

	mu        sync.Mutex
	index     uint64
	authority *pki.Authority
	member    pki.Member
	renewed   int
	served    int
	lifetime  time.Duration
	fails     error
	onDisk    *pki.Member // what "palisade join" has put there
}

func newAuthorityFleet(t *testing.T, lifetime time.Duration) *authorityFleet {
	t.Helper()
	a, err := pki.NewAuthority(testFleet, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := &authorityFleet{t: t, store: fsm.NewStore(), authority: a, lifetime: lifetime}
	f.member = f.issue(fsm.FirstSerial)
	f.apply(fsm.FormFleet{
		ID: testFleet, CA: sealed(a), GossipKey: fsm.GossipKey{ID: "g1", SealedKey: []byte("x")},
		Node: fsm.Admission{ID: "n1", Address: "192.0.2.1:1", Gossip: "192.0.2.1:2", KeyHash: [32]byte{1}, NotAfter: f.member.NotAfter},
	})
	return f
}

func sealed(a *pki.Authority) fsm.CA {
	return fsm.CA{ID: a.ID(), Certificate: a.Certificate(), Cross: a.Cross(), SealedKey: []byte("x")}
}

func (f *authorityFleet) apply(op fsm.Op) fsm.Result {
	f.t.Helper()
	f.index++
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Now(), Actor: "t", Op: op})
	if err != nil {
		f.t.Fatal(err)
	}
	res, err := f.store.ApplyBatch([]fsm.Entry{{Index: f.index, Data: data}})
	if err != nil || res[0].Err != nil {
		f.t.Fatal(err, res)
	}
	return res[0]
}

func (f *authorityFleet) issue(serial uint64) pki.Member {
	now := time.Now()
	return pki.Member{Fleet: testFleet, Node: "n1", Serial: serial, NotBefore: now.Add(-pki.Backdate), NotAfter: now.Add(f.lifetime)}
}

func (f *authorityFleet) rotate() {
	f.mu.Lock()
	defer f.mu.Unlock()
	next, err := f.authority.Next(testFleet, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	f.authority = next
	f.apply(fsm.StartCA{CA: sealed(next)})
}

func (f *authorityFleet) Certificate() pki.Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.member
}

func (f *authorityFleet) AuthorityChanged() bool { return len(f.store.View().AwaitingCA()) > 0 }

func (f *authorityFleet) Renew(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails != nil {
		return f.fails
	}
	f.renewed++
	n := f.apply(fsm.RenewNode{ID: "n1", Using: f.member.Serial, KeyHash: [32]byte{2}}).Node
	f.member = f.issue(n.Serial)
	f.apply(fsm.ConfirmNode{ID: "n1", Serial: n.Serial})
	return nil
}

func (f *authorityFleet) Reload() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onDisk == nil {
		return false, nil
	}
	f.member, f.onDisk, f.fails = *f.onDisk, nil, nil
	return true, nil
}

func (f *authorityFleet) ServingCertificate(_ context.Context, request []byte, names []string, addrs []netip.Addr) ([][]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails != nil {
		return nil, f.fails
	}
	f.served++
	leaf, err := f.authority.IssueServing(request, pki.ServingTerms{Node: "n1", Names: names, Addresses: addrs, Lifetime: f.lifetime}, time.Now())
	return f.authority.Chain(leaf), err
}

func (f *authorityFleet) counts() (renewed, served int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.renewed, f.served
}

// renewing runs a renewer over the fleet until the test ends.
func (f *authorityFleet) renewing(t *testing.T, names func() ([]string, []netip.Addr)) (api *fleetCertificate, log *strings.Builder, stop func()) {
	t.Helper()
	dir := t.TempDir()
	api, err := newFleetCertificate(dir)
	if err != nil {
		t.Fatal(err)
	}
	log = &strings.Builder{}
	timing := defaultRenewalTiming()
	timing.look = time.Hour // these tests take years
	r := &renewer{
		log: slog.New(slog.NewTextHandler(log, nil)), store: f.store, cluster: f, api: api,
		names: names, now: time.Now, timing: timing, file: filepath.Join(dir, "ca.pem"),
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	return api, log, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func local() ([]string, []netip.Addr) {
	return []string{"n1"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}
}

// TestAnEndedCertificateIsReplacedFromTheDisk: the peers refuse a node whose certificate has ended, so none can be asked for; what "palisade join" has
// put on the disk is taken within a second or two, also after the node has been waiting for long.
func TestAnEndedCertificateIsReplacedFromTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newAuthorityFleet(t, 90*24*time.Hour)
		f.mu.Lock()
		f.fails = errors.New("refused")
		f.mu.Unlock()
		_, log, stop := f.renewing(t, local)
		defer stop()
		time.Sleep(120 * 24 * time.Hour)
		synctest.Wait()
		if got := f.Certificate(); time.Now().Before(got.NotAfter) {
			t.Fatalf("the certificate lasts until %s", got.NotAfter)
		}
		next := f.issue(fsm.FirstSerial + 7)
		f.mu.Lock()
		f.onDisk = &next
		f.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := f.Certificate(); got.Serial != next.Serial {
			t.Errorf("the certificate is still %d", got.Serial)
		}
		if renewed, _ := f.counts(); renewed != 0 {
			t.Errorf("it was renewed %d times", renewed)
		}
		if text := log.String(); !strings.Contains(text, "--again") {
			t.Errorf("the log does not say what to do:\n%s", text)
		}
	})
}

func TestCertificatesRenewThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newAuthorityFleet(t, 90*24*time.Hour)
		api, _, stop := f.renewing(t, local)
		defer stop()
		synctest.Wait()
		if renewed, served := f.counts(); renewed != 0 || served != 1 || api.cur.Load() == nil {
			t.Fatalf("at the start: renewed %d, served %d", renewed, served)
		}
		time.Sleep(59 * 24 * time.Hour)
		if renewed, _ := f.counts(); renewed != 0 {
			t.Fatal("renewed long before two thirds of the life")
		}
		time.Sleep(25 * time.Hour)
		if renewed, served := f.counts(); renewed != 1 || served != 2 {
			t.Fatalf("after two thirds of the life: renewed %d, served %d", renewed, served)
		}
		time.Sleep(600 * 24 * time.Hour)
		if renewed, served := f.counts(); renewed != 11 || served != 12 {
			t.Fatalf("after 660 days: renewed %d, served %d", renewed, served)
		}
	})
}

func TestANewAuthorityRenewsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newAuthorityFleet(t, 90*24*time.Hour)
		api, _, stop := f.renewing(t, local)
		defer stop()
		synctest.Wait()
		f.rotate()
		time.Sleep(time.Second)
		if renewed, served := f.counts(); renewed != 1 || served != 2 {
			t.Fatalf("renewed %d, served %d", renewed, served)
		}
		if cert := api.cur.Load(); !pki.SignedBy(cert.Leaf, f.authority.ID()) || len(cert.Certificate) != 3 {
			t.Errorf("the API presents %d certificates", len(cert.Certificate))
		}
		text, err := os.ReadFile(filepath.Join(api.dir, "ca.pem"))
		if n := strings.Count(string(text), "BEGIN"); err != nil || n != 2 {
			t.Errorf("the file has %d authorities, %v", n, err)
		}
		for _, ca := range mustFleet(t, f.store).CAs {
			if ca.State == fsm.CATrusted {
				f.mu.Lock()
				f.apply(fsm.FinishCA{ID: ca.ID})
				f.mu.Unlock()
			}
		}
		time.Sleep(time.Minute)
		text, err = os.ReadFile(filepath.Join(api.dir, "ca.pem"))
		if n := strings.Count(string(text), "BEGIN"); err != nil || n != 1 {
			t.Errorf("at the end the file has %d authorities, %v", n, err)
		}
	})
}

func mustFleet(t *testing.T, s *fsm.Store) *fsm.Fleet {
	t.Helper()
	f, ok := s.View().Fleet()
	if !ok {
		t.Fatal("no fleet")
	}
	return f
}

// TestFailuresAreTriedAgain: each time later, said louder when time is short, and over at once when it works.
func TestFailuresAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newAuthorityFleet(t, 90*24*time.Hour)
		_, log, stop := f.renewing(t, local)
		synctest.Wait()
		f.mu.Lock()
		f.fails = errors.New("no leader")
		f.mu.Unlock()
		time.Sleep(60*24*time.Hour + time.Hour)
		f.mu.Lock()
		f.fails = nil
		f.mu.Unlock()
		time.Sleep(6 * time.Minute)
		if renewed, _ := f.counts(); renewed != 1 {
			t.Errorf("renewed %d times", renewed)
		}
		f.mu.Lock()
		f.fails = errors.New("no leader")
		f.mu.Unlock()
		time.Sleep(91 * 24 * time.Hour)
		stop()
		for _, want := range []string{"can't be renewed now", "ends soon: then its peers refuse it", "has ended: its peers refuse it", "err=\"no leader\\nno leader\""} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log does not say %q", want)
			}
		}
		if n := strings.Count(log.String(), "\n"); n > 20_000 {
			t.Errorf("%d lines are logged", n)
		}
	})
}

// TestTheAPIFollowsItsNames: an address that comes is certified, one that the fleet leaves out is not asked for again and again.
func TestTheAPIFollowsItsNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newAuthorityFleet(t, 90*24*time.Hour)
		var mu sync.Mutex
		names, addrs := local()
		api, _, stop := f.renewing(t, func() ([]string, []netip.Addr) {
			mu.Lock()
			defer mu.Unlock()
			return append([]string(nil), names...), append([]netip.Addr(nil), addrs...)
		})
		defer stop()
		time.Sleep(10 * time.Hour)
		mu.Lock()
		addrs = append(addrs, netip.MustParseAddr("192.0.2.9"))
		names = append(names, "no_host_name")
		mu.Unlock()
		time.Sleep(10 * time.Hour)
		if _, served := f.counts(); served != 2 || api.cur.Load().Leaf.VerifyHostname("192.0.2.9") != nil {
			t.Errorf("served %d times, now for %v", served, api.cur.Load().Leaf.IPAddresses)
		}
		again, err := newFleetCertificate(api.dir)
		if err != nil || again.cur.Load() == nil || !again.cur.Load().Leaf.Equal(api.cur.Load().Leaf) {
			t.Errorf("after a restart: %v", err)
		}
	})
}

// TestFilesOfTheAdminAreReadAgain: also when the two are replaced one after the other.
func TestFilesOfTheAdminAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	write := func(path string, data []byte) {
		t.Helper()
		if err := files.ReplaceBytes(path, data); err != nil {
			t.Fatal(err)
		}
	}
	pair := func(name string) (c, k []byte) {
		t.Helper()
		a, err := pki.NewAuthority(testFleet, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		priv, err := pki.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		request, err := pki.Request(priv)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := a.IssueServing(request, pki.ServingTerms{Node: name, Names: []string{name}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		k, err = pki.EncodeKey(priv)
		if err != nil {
			t.Fatal(err)
		}
		return pki.EncodeChain(a.Chain(leaf)), k
	}
	c1, k1 := pair("one")
	c2, k2 := pair("two")
	now := time.Now()
	clock := func() time.Time { return now }
	log := slog.New(slog.DiscardHandler)
	if _, err := newFileCertificate(log, cert, key, clock); err == nil {
		t.Error("files that are missing were accepted")
	}
	write(cert, c1)
	write(key, k1)
	f, err := newFileCertificate(log, cert, key, clock)
	if err != nil {
		t.Fatal(err)
	}
	is := func(want string) {
		t.Helper()
		got, err := f.get(&tls.ClientHelloInfo{})
		if err != nil || got.Leaf.DNSNames[0] != want {
			t.Errorf("got %v, %v, want %s", got, err, want)
		}
	}
	is("one")
	write(cert, c2)
	now = now.Add(statAgain)
	is("one") // the key is still that of the first
	write(key, k2)
	is("one") // looked just now
	now = now.Add(statAgain)
	is("two")
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	now = now.Add(statAgain)
	is("two")
	if _, err := x509.ParseCertificate(f.cur.Certificate[0]); err != nil {
		t.Error(err)
	}
}
