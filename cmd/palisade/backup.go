package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/palisade/palisade/backup"
	"github.com/palisade/palisade/internal/files"
)

// BackupCmd groups what is done with backups.
type BackupCmd struct {
	Make BackupMakeCmd `cmd:"" default:"withargs" help:"Make a backup of the fleet's state, encrypted (what palisade backup does)."`
	Show BackupShowCmd `cmd:"" help:"Check a backup, and say what is in it."`
}

// BackupMakeCmd makes a backup.
type BackupMakeCmd struct {
	Out            string   `required:"" placeholder:"FILE" help:"File to write; - for standard output. What is there is replaced once the backup is whole."`
	Recipient      []string `sep:"none" placeholder:"AGE" help:"Who can read it: an age recipient (age1...). May be given several times."`
	PassphraseFile string   `placeholder:"FILE" help:"File with the passphrase that reads it; - for standard input."`
}

// Run implements the command. The node encrypts for a key that exists only here and now; what came is checked, and
// encrypted anew for whom it is to be kept.
func (c *BackupMakeCmd) Run(ctx context.Context, g *Globals) error {
	keep, err := c.recipients(g)
	if err != nil {
		return err
	}
	api, err := g.Client()
	if err != nil {
		return err
	}
	courier, err := backup.NewCourier()
	if err != nil {
		return err
	}
	var found *backup.Content
	fetch := func(w io.Writer) error {
		r, pipe := io.Pipe()
		go func() { pipe.CloseWithError(api.Backup(ctx, []string{courier.Recipient()}, pipe)) }()
		var err error
		found, err = backup.Pass(w, keep, r, courier)
		return errors.Join(err, r.Close())
	}
	if c.Out == "-" {
		if err := fetch(g.Stdout); err != nil {
			return err
		}
		g.reportBackup(g.Stderr, found, "standard output")
		return nil
	}
	if err := files.Replace(c.Out, fetch); err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(found.Header)
	}
	g.reportBackup(g.Stdout, found, c.Out)
	return nil
}

func (c *BackupMakeCmd) recipients(g *Globals) (backup.Recipients, error) {
	switch {
	case (len(c.Recipient) > 0) == (c.PassphraseFile != ""):
		return backup.Recipients{}, usagef("give either --recipient or --passphrase-file: a backup holds the fleet's secrets")
	case c.PassphraseFile != "":
		text, err := g.readSecret(c.PassphraseFile)
		if err != nil {
			return backup.Recipients{}, err
		}
		to, err := backup.ForPassphrase(text)
		return to, usageIf(err)
	}
	to, err := backup.ParseRecipients(c.Recipient)
	return to, usageIf(err)
}

func usageIf(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

// maxSecretFile bounds a file with a passphrase or keys.
const maxSecretFile = 64 << 10

func (g *Globals) readSecret(path string) ([]byte, error) {
	in, err := g.open(path)
	if err != nil {
		return nil, usageError{err}
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, maxSecretFile))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return text, nil
}

func (g *Globals) reportBackup(w io.Writer, c *backup.Content, where string) {
	fmt.Fprintf(w, "%s: whole; fleet %s, epoch %d, log index %d, made by %s\n", cell(where), cell(c.Fleet), c.Epoch, c.Index, cell(c.Node))
}

// BackupShowCmd says what is in a backup.
type BackupShowCmd struct {
	File string `arg:"" help:"Backup; - for standard input."`
	backupKey
}

// backupKey says what opens a backup.
type backupKey struct {
	Identity       string `placeholder:"FILE" help:"File with the age identity (AGE-SECRET-KEY-1...) that opens it."`
	PassphraseFile string `placeholder:"FILE" help:"File with the passphrase that opens it."`
}

// read reads a whole backup.
func (k *backupKey) read(g *Globals, path string) (*backup.Content, error) {
	if (k.Identity != "") == (k.PassphraseFile != "") {
		return nil, usagef("give either --identity or --passphrase-file: without it nothing of a backup can be read")
	}
	text, err := g.readSecret(k.Identity + k.PassphraseFile)
	if err != nil {
		return nil, err
	}
	parse := backup.ParseKey
	if k.Identity == "" {
		parse = backup.FromPassphrase
	}
	key, err := parse(text)
	if err != nil {
		return nil, usageError{err}
	}
	in, err := g.open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	c, err := backup.Read(in, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// backupShown is what backup show prints as JSON.
type backupShown struct {
	backup.Header
	Nodes         []string  `json:"nodes"`
	VMs           int       `json:"vms"`
	ActiveBlocks  int       `json:"active_blocks"`
	PendingBlocks int       `json:"pending_blocks"`
	Lists         int       `json:"lists"`
	StateTime     time.Time `json:"state_time"`
}

// Run implements the command.
func (c *BackupShowCmd) Run(_ context.Context, g *Globals) error {
	found, err := c.read(g, c.File)
	if err != nil {
		return err
	}
	v := found.Store.View()
	s := backupShown{
		Header: found.Header, Nodes: []string{}, VMs: v.CountVMs(), ActiveBlocks: v.CountActive(), PendingBlocks: v.CountPending(), StateTime: v.Time(),
	}
	for n := range v.Members() {
		s.Nodes = append(s.Nodes, n.ID)
	}
	for range v.Lists("") {
		s.Lists++
	}
	if g.JSON() {
		return g.PrintJSON(s)
	}
	g.printf("fleet     %s, epoch %d\n", cell(s.Fleet), s.Epoch)
	g.printf("made      %s by %s (%s)\n", local(s.At), cell(s.Node), cell(s.Build))
	g.printf("state     index %s of %s; hash %.16s\n", strconv.FormatUint(s.Index, 10), local(s.StateTime), s.Hash)
	g.printf("nodes     %s\n", cell(some(s.Nodes, 10)))
	g.printf("content   %s, %s, %d pending, %s\n", count(s.VMs, "VM"), count(s.ActiveBlocks, "active block"), s.PendingBlocks, count(s.Lists, "list"))
	return nil
}

// Help implements kong.HelpProvider.
func (*BackupMakeCmd) Help() string {
	return `Examples:

    palisade backup --out fleet.age --recipient age1...
    palisade backup --out /var/backups/fleet.age --passphrase-file /root/backup.pass`
}

// Help implements kong.HelpProvider.
func (*BackupShowCmd) Help() string {
	return `Example:

    palisade backup show fleet.age --identity key.txt`
}
