package cluster

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// The versions of what peers say to each other by calls. A caller tells which it speaks; a peer that speaks none of
// them refuses before it acts, and both say what to do. What only adds fields or calls needs no new version: fields that
// are not known are ignored, and a call that is not known is answered so. The log's entries have formats of their own,
// see fsm.Format; raft's stream would get another ALPN name.
const (
	protocolNewest = 1
	protocolOldest = 1
	// protocolHeader carries "oldest-newest". A caller without it speaks version 1.
	protocolHeader = "Palisade-Peer-Protocol"
)

// protocols is a range of versions.
type protocols struct{ oldest, newest int }

func ownProtocols() protocols { return protocols{protocolOldest, protocolNewest} }

func (p protocols) String() string { return fmt.Sprintf("%d-%d", p.oldest, p.newest) }

func parseProtocols(s string) (p protocols, ok bool) {
	if s == "" {
		return protocols{1, 1}, true
	}
	oldest, newest, ok := strings.Cut(s, "-")
	var err, err2 error
	p.oldest, err = strconv.Atoi(oldest)
	p.newest, err2 = strconv.Atoi(newest)
	return p, ok && err == nil && err2 == nil && 1 <= p.oldest && p.oldest <= p.newest
}

func (p protocols) overlaps(o protocols) bool { return p.oldest <= o.newest && o.oldest <= p.newest }

// understood refuses calls of peers that speak none of these versions. build is the version of this node's build.
func understood(own protocols, build string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		theirs, ok := parseProtocols(r.Header.Get(protocolHeader))
		switch {
		case !ok:
			http.Error(w, "bad "+protocolHeader, http.StatusBadRequest)
		case !own.overlaps(theirs):
			behind := "this node"
			if theirs.newest < own.oldest {
				behind = "the calling node"
			}
			http.Error(w, fmt.Sprintf("this node (version %s) speaks the peer protocol in versions %s, the caller in %s: upgrade %s", build, own, theirs, behind),
				http.StatusUpgradeRequired)
		default:
			next.ServeHTTP(w, r)
		}
	})
}
