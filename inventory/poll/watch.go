package poll

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// watcher hints at changes of files and directories.
type watcher struct {
	paths []string
	inner *fsnotify.Watcher // nil without paths
	hints chan struct{}     // of capacity 1
	group sync.WaitGroup
}

func newWatcher(paths []string) (*watcher, error) {
	w := &watcher{hints: make(chan struct{}, 1)}
	if len(paths) == 0 {
		return w, nil
	}
	for _, p := range paths {
		w.paths = append(w.paths, filepath.Clean(p))
	}
	var err error
	if w.inner, err = fsnotify.NewWatcher(); err != nil {
		return nil, fmt.Errorf("inventory: watch files: %w", err)
	}
	w.group.Go(w.run)
	return w, nil
}

// add watches what can be watched by now. A directory that is watched already costs nothing.
func (w *watcher) add() {
	for _, p := range w.paths {
		if info, err := os.Stat(p); err != nil || !info.IsDir() {
			p = filepath.Dir(p)
		}
		_ = w.inner.Add(p) // it is a hint: without it the interval serves
	}
}

func (w *watcher) run() {
	for {
		select {
		case e, ok := <-w.inner.Events:
			if !ok {
				return
			}
			name := filepath.Clean(e.Name)
			if !slices.Contains(w.paths, name) && !slices.Contains(w.paths, filepath.Dir(name)) {
				continue
			}
		case _, ok := <-w.inner.Errors: // among them a queue that overflowed
			if !ok {
				return
			}
		}
		select {
		case w.hints <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) close() {
	if w.inner != nil {
		_ = w.inner.Close()
	}
	w.group.Wait()
}
