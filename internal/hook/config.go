package hook

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// What the agent and the hook must agree on without asking each other.
const (
	DefaultConfig  = "/etc/palisade/palisade.toml"
	DefaultSocket  = "/run/palisade/palisade.sock"
	DefaultTimeout = 2 * time.Second
	MinTimeout     = 50 * time.Millisecond
	MaxTimeout     = time.Minute
	// maxConfigBytes bounds the agent's config file.
	maxConfigBytes = 1 << 20
)

// Config is what the hook needs of the agent's configuration.
type Config struct {
	Socket  string
	Timeout time.Duration
	// Strict refuses a guest when the agent gives no answer.
	Strict bool
	// Absent says that there is no config file: no agent was set up on this node.
	Absent bool
}

// LoadConfig reads only the keys that the hook needs, so that a mistake elsewhere in the file does not stop migrations. If the file
// can't be read at all, what comes with the error is strict: nobody knows whether it was meant to be.
func LoadConfig(path string) (Config, error) {
	var file struct {
		API struct {
			Socket string `toml:"socket"`
		} `toml:"api"`
		Inventory struct {
			Libvirt struct {
				Timeout duration `toml:"hook_timeout"`
				Strict  bool     `toml:"hook_strict"`
			} `toml:"libvirt"`
		} `toml:"inventory"`
	}
	cfg := Config{Socket: DefaultSocket, Timeout: DefaultTimeout}
	b, err := ReadConfig(path)
	if errors.Is(err, fs.ErrNotExist) {
		cfg.Absent = true
		return cfg, nil
	}
	if err == nil {
		err = toml.Unmarshal(b, &file)
	}
	if err != nil {
		cfg.Strict = true
		return cfg, fmt.Errorf("%s: %w", path, err)
	}
	if file.API.Socket != "" {
		cfg.Socket = file.API.Socket
	}
	if d := time.Duration(file.Inventory.Libvirt.Timeout); d >= MinTimeout && d <= MaxTimeout {
		cfg.Timeout = d
	}
	cfg.Strict = file.Inventory.Libvirt.Strict
	return cfg, nil
}

// duration is written as "2s".
type duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = duration(v)
	return err
}

// ErrTooLarge says that a config file is no config file.
var ErrTooLarge = errors.New("larger")

// ReadConfig reads the agent's config file. The error of one larger than 1 MiB is ErrTooLarge.
func ReadConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err == nil && len(b) > maxConfigBytes {
		err = fmt.Errorf("%w than %d bytes", ErrTooLarge, maxConfigBytes)
	}
	return b, err
}
