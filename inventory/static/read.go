package static

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

var errUnchanged = errors.New("unchanged")

// racy is how old a file must be for its stamp to be trusted: two writes within one tick of the file
// system's clock can leave the same stamp.
const racy = 2 * time.Second

// read returns the content of a regular file of at most MaxFileBytes, or errUnchanged if its stamp is
// the one before.
func read(path string, before stamp) ([]byte, stamp, error) {
	// Without O_NONBLOCK a FIFO of this name would stop the driver.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, stamp{}, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, stamp{}, errors.New("not a regular file")
	}
	now := stamp{modified: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		now.inode = sys.Ino
	}
	if now == before && time.Since(info.ModTime()) > racy {
		return nil, now, errUnchanged
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return nil, stamp{}, err
	}
	if len(data) > MaxFileBytes {
		return nil, now, fmt.Errorf("larger than %d bytes", MaxFileBytes)
	}
	return data, now, nil
}
