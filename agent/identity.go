package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/palisade/palisade/cluster"
	"github.com/palisade/palisade/httpapi"
)

// identityDir is where the cluster keeps the identity, below data_dir.
const identityDir = "identity"

const awaitIdentityStep = 250 * time.Millisecond

// awaitIdentity returns this node's identity. A node that belongs to no fleet yet waits until "palisade init" or
// "palisade join" has put one there. It forms and joins nothing by itself, and until then answers nothing but that on its
// socket.
func (a *Agent) awaitIdentity(ctx context.Context, manager *service) (*cluster.Identity, error) {
	id, err := a.loadIdentity()
	if !errors.Is(err, cluster.ErrNoIdentity) {
		return id, err
	}
	const how = `this node belongs to no fleet yet: "palisade init" forms a new one, "palisade join ADDRESS --token-file FILE" joins one`
	stop, err := a.answerOnly(ctx, manager, how)
	if err != nil {
		return nil, err
	}
	defer stop()
	a.log.Info(how, "data_dir", a.cfg.DataDir)
	for {
		if !sleep(ctx, awaitIdentityStep) {
			return nil, ctx.Err()
		}
		if id, err := a.loadIdentity(); !errors.Is(err, cluster.ErrNoIdentity) {
			return id, err
		}
	}
}

// answerOnly answers every request on the socket with one text, until stop is called.
func (a *Agent) answerOnly(ctx context.Context, manager *service, text string) (stop func(), err error) {
	socket, err := listenSocket(ctx, a.cfg.API.Socket)
	if err != nil {
		return nil, err
	}
	server := &http.Server{
		Handler: httpapi.NotReady(text), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(a.log.With("room", "api").Handler(), slog.LevelDebug),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(socket) // ends with Close
	}()
	manager.set(func(context.Context) (string, error) { return oneLine(text), nil })
	return func() { _ = server.Close(); <-ended }, nil
}

// outsideStep is how soon a node that the fleet has refused asks again: what it was mistaken for may have ended.
const outsideStep = 30 * time.Second

// waitOutside takes no part in the fleet, and says why, until it is time to ask again or "palisade join" has got this node another
// certificate. The kernel goes on enforcing.
func (a *Agent) waitOutside(ctx context.Context, manager *service, id *cluster.Identity, why string) error {
	a.log.Error("the fleet refuses this node; its kernel goes on enforcing", "why", why, "again_in", outsideStep)
	stop, err := a.answerOnly(ctx, manager, why)
	if err != nil {
		return err
	}
	defer stop()
	for again := time.After(outsideStep); sleep(ctx, awaitIdentityStep); {
		now, err := a.loadIdentity() // one that can't be read is told by the next life
		if err != nil || now.Certificate().Serial != id.Certificate().Serial {
			return nil
		}
		select {
		case <-again:
			return nil
		default:
		}
	}
	return nil
}

func (a *Agent) loadIdentity() (*cluster.Identity, error) {
	id, err := cluster.LoadIdentity(a.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if id.Node() != a.cfg.Node.ID {
		return nil, fmt.Errorf("node.id is %q, but %s holds the identity of node %q: an id can't be changed; "+
			"to use the new one, retire the old one and join with an empty data_dir", a.cfg.Node.ID, a.cfg.DataDir, id.Node())
	}
	return id, nil
}

// handOver gives what root has made below the data directory to the directory's owner, who runs the agent.
func handOver(dataDir string) error {
	info, err := os.Stat(dataDir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || owner.Uid == 0 {
		return nil
	}
	// The owner may change what is in there meanwhile: nothing outside may be reached through a link of his.
	root, err := os.OpenRoot(dataDir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}
