package cluster

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain fails if goroutines are left. A probe of memberlist may outlast its shutdown by seconds.
func TestMain(m *testing.M) {
	code := m.Run()
	for deadline := time.Now().Add(20 * time.Second); code == 0; time.Sleep(100 * time.Millisecond) {
		err := goleak.Find()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
