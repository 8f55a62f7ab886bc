package fsm

import (
	"fmt"
	"net/url"
	"strings"
)

func (a *applier) putAccount(op PutAccount) (*Account, *Error) {
	if op.ID == "" {
		return nil, &Error{CodeInvalid, "id", "is missing"}
	}
	if refused := first(checkText("id", op.ID, MaxNameBytes), checkNote(op.Note)); refused != nil {
		return nil, refused
	}
	was, known := a.accounts.get([]byte(op.ID))
	is := &Account{ID: op.ID, DoNotBlockUntil: utc(op.DoNotBlockUntil), Note: op.Note, Actor: a.actor, Revision: a.index}
	var revision uint64
	if known {
		revision = was.Revision
	}
	if refused := checkRevision(op.IfRevision, revision); refused != nil {
		return nil, refused
	}
	if known && was.DoNotBlockUntil.Equal(is.DoNotBlockUntil) && was.Note == is.Note {
		return was, nil
	}
	if is.DoNotBlockUntil.IsZero() && is.Note == "" {
		is = &Account{ID: op.ID}
		if !known {
			return is, nil
		}
		a.setAccount(was, nil)
	} else {
		a.setAccount(was, is)
	}
	a.emit(Event{Type: EventAccountChanged, Account: is})
	a.postpone(Target{Account: op.ID})
	for vm := range a.owners.under(groupKey(op.ID)) {
		a.postpone(Target{VM: vm.ID})
	}
	return is, nil
}

// DefaultSettings are those of a new fleet.
func DefaultSettings() Settings {
	return Settings{
		MaxVMs: 100, MaxAddresses: 65_536,
		RedirectTitle: "Suspended",
		RedirectText:  "This site is suspended. If it is yours, please contact your provider.",
	}
}

func (s *state) currentSettings() Settings {
	if s.settings == nil {
		return DefaultSettings()
	}
	return *s.settings
}

func (a *applier) putSettings(op PutSettings) (*Settings, *Error) {
	is := op.Settings
	was := a.currentSettings()
	if refused := first(
		checkRevision(op.IfRevision, was.Revision),
		checkSettingsText("redirect_title", is.RedirectTitle),
		checkSettingsText("redirect_text", is.RedirectText),
		checkLink("redirect_link", is.RedirectLink),
		checkVoters(is),
	); refused != nil {
		return nil, refused
	}
	is.Revision = was.Revision
	if is == was {
		return &is, nil
	}
	is.Revision = a.index
	a.was.settings, a.listed = &was, nil
	a.settings = &is
	a.emit(Event{Type: EventSettings, Settings: &is})
	return &is, nil
}

func checkVoters(is Settings) *Error {
	n, after := is.WantedVoters(), is.VoterPatience()
	switch {
	case n > MaxVoters || n%2 == 0:
		return &Error{CodeInvalid, "voters", fmt.Sprintf("is %d; 1, 3, 5 or 7 nodes can vote", n)}
	case after < MinReplaceVoterAfter || after > MaxReplaceVoterAfter:
		return &Error{CodeInvalid, "replace_voter_after", fmt.Sprintf("is %s; from %s to %s is possible", after, MinReplaceVoterAfter, MaxReplaceVoterAfter)}
	}
	return nil
}

func checkSettingsText(field, s string) *Error {
	return checkText(field, strings.ReplaceAll(s, "\n", " "), MaxSettingsBytes)
}

func checkLink(field, s string) *Error {
	if s == "" {
		return nil
	}
	if refused := checkText(field, s, MaxSettingsBytes); refused != nil {
		return refused
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return &Error{CodeInvalid, field, quote(s) + ` is no link, which looks like "https://pay.example/"`}
	}
	return nil
}
