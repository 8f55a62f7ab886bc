package libvirt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// fake speaks as much of libvirt's protocol as the driver needs: big-endian XDR in packets of
// (length, program, version, procedure, type, serial, status, payload).
type fake struct {
	t    *testing.T
	path string

	mu       sync.Mutex
	listener net.Listener
	domains  map[string]*fakeDomain // by UUID
	conns    map[net.Conn]bool
	hung     bool // takes requests, answers none
	listed   int  // times that domains were listed
	group    sync.WaitGroup
}

type fakeDomain struct {
	name      string
	state     golibvirt.DomainState
	reason    int32
	transient bool
	receiving bool
	mac, tap  string
	broken    bool // its XML can't be read
}

const (
	procOpen, procXML, procAuth, procPersistent, procVersion    = 1, 14, 66, 151, 157
	procState, procList, procJob, procSubscribe, procLifecycle  = 212, 273, 298, 316, 318
	callbackID                                                  = 7
	program, protocolVersion, typeReply, typeMessage, statusErr = 0x20008086, 1, 1, 2, 1
)

func newFake(t *testing.T) *fake {
	f := &fake{t: t, path: filepath.Join(t.TempDir(), "sock"), domains: map[string]*fakeDomain{}, conns: map[net.Conn]bool{}}
	f.listen()
	t.Cleanup(func() { f.cut(); f.group.Wait() })
	return f
}

func (f *fake) listen() {
	l, err := net.Listen("unix", f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.listener = l
	f.mu.Unlock()
	f.group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns[c] = true
			f.mu.Unlock()
			f.group.Go(func() { f.serve(c) })
		}
	})
}

// cut ends the daemon: its socket and all connections.
func (f *fake) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.listener.Close()
	for c := range f.conns {
		_ = c.Close()
		delete(f.conns, c)
	}
}

func (f *fake) lists() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.listed
}

func (f *fake) hang(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hung = yes
}

// set changes a domain (nil: undefines it) without a word.
func (f *fake) set(id string, d *fakeDomain) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d == nil {
		delete(f.domains, id)
		return
	}
	f.domains[id] = d
}

// event sends a lifecycle event, which need not be true.
func (f *fake) event(id string, event, detail int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var p bytes.Buffer
	word(&p, callbackID)
	writeDomain(&p, id, "whatever")
	word(&p, uint32(event))
	word(&p, uint32(detail))
	for c := range f.conns {
		_, _ = c.Write(packet(procLifecycle, typeMessage, 0, 0, p.Bytes()))
	}
}

func (f *fake) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	for {
		var head [28]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		payload := make([]byte, binary.BigEndian.Uint32(head[:])-28)
		if _, err := io.ReadFull(c, payload); err != nil {
			return
		}
		proc, serial := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[20:])
		f.mu.Lock()
		if !f.hung {
			_, _ = c.Write(f.answer(proc, serial, payload))
		}
		f.mu.Unlock()
	}
}

func (f *fake) answer(proc, serial uint32, payload []byte) []byte {
	var p bytes.Buffer
	refuse := func(code golibvirt.ErrorNumber, text string) []byte {
		word(&p, uint32(code))
		word(&p, 10) // from the QEMU driver
		word(&p, 1)  // a message follows
		str(&p, text)
		word(&p, 2) // level: error
		return packet(proc, typeReply, serial, statusErr, p.Bytes())
	}
	var d *fakeDomain
	var id string
	switch proc {
	case procXML, procPersistent, procState, procJob:
		id = domainID(payload)
		if d = f.domains[id]; d == nil {
			return refuse(golibvirt.ErrNoDomain, "Domain not found")
		}
	}
	switch proc {
	case procOpen:
	case procAuth:
		word(&p, 1)
		word(&p, 0) // none
	case procVersion:
		word(&p, 0)
		word(&p, 9_000_000)
	case procSubscribe:
		word(&p, callbackID+binary.BigEndian.Uint32(payload)) // lifecycle events are number 0
	case procList:
		active := binary.BigEndian.Uint32(payload[4:]) == uint32(golibvirt.ConnectListDomainsActive)
		var list bytes.Buffer
		n := uint32(0)
		f.listed++
		for id, d := range f.domains {
			if active && d.state == golibvirt.DomainShutoff {
				continue
			}
			writeDomain(&list, id, d.name)
			n++
		}
		word(&p, n)
		p.Write(list.Bytes())
		word(&p, n)
	case procState:
		word(&p, uint32(d.state))
		word(&p, uint32(d.reason))
	case procPersistent:
		if d.transient {
			word(&p, 0)
		} else {
			word(&p, 1)
		}
	case procJob:
		if d.receiving {
			return refuse(golibvirt.ErrOperationUnsupported, "migration statistics are available only on the source host")
		}
		word(&p, 0)
		word(&p, 0)
	case procXML:
		if d.broken {
			return refuse(golibvirt.ErrInternalError, "cannot do that now")
		}
		str(&p, fmt.Sprintf("<domain type='kvm'><name>%s</name><uuid>%s</uuid><devices><interface type='bridge'><mac address='%s'/><target dev='%s'/></interface></devices></domain>", d.name, id, d.mac, d.tap))
	default:
		f.t.Errorf("the driver called procedure %d", proc)
		return refuse(golibvirt.ErrNoSupport, "not faked")
	}
	return packet(proc, typeReply, serial, 0, p.Bytes())
}

func packet(proc, typ, serial, status uint32, payload []byte) []byte {
	var b bytes.Buffer
	for _, v := range []uint32{uint32(28 + len(payload)), program, protocolVersion, proc, typ, serial, status} {
		word(&b, v)
	}
	b.Write(payload)
	return b.Bytes()
}

func word(b *bytes.Buffer, v uint32) { _ = binary.Write(b, binary.BigEndian, v) }

func str(b *bytes.Buffer, s string) {
	word(b, uint32(len(s)))
	b.WriteString(s)
	b.Write(make([]byte, (4-len(s)%4)%4))
}

func writeDomain(b *bytes.Buffer, id, name string) {
	str(b, name)
	raw, _ := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
	b.Write(raw)
	word(b, 1)
}

// domainID reads the domain that begins a payload.
func domainID(payload []byte) string {
	n := binary.BigEndian.Uint32(payload)
	n = 4 + (n+3)/4*4
	return uuid(golibvirt.UUID(payload[n : n+16]))
}
