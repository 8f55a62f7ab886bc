package wire

import "time"

// Account is a customer, the owner of VMs.
type Account struct {
	ID              string    `json:"id"`
	DoNotBlockUntil time.Time `json:"do_not_block_until,omitzero" doc:"Blocks of reason unpaid on it or its VMs are refused before"`
	Note            string    `json:"note"`
	Actor           string    `json:"actor" doc:"Who set it last"`
	Revision        uint64    `json:"revision" doc:"Log index of the last change; the ETag; 0 if nothing is set"`
	VMs             int       `json:"vms" doc:"How many VMs it owns"`
	Blocks          []string  `json:"blocks" nullable:"false" doc:"Ids of the active blocks on the account itself"`
}

// AccountRequest is the body of PUT /v1/accounts/{id}. It replaces what is set; an account with nothing set is
// forgotten.
type AccountRequest struct {
	DoNotBlockUntil time.Time `json:"do_not_block_until,omitzero" doc:"Blocks of reason unpaid are refused before. To change it takes the scope admin"`
	Note            string    `json:"note,omitempty" maxLength:"4096"`
}

// Settings are the fleet's own.
type Settings struct {
	SettingsRequest
	Revision uint64 `json:"revision" doc:"Log index of the last change; the ETag"`
}

// SettingsRequest is the body of PUT /v1/settings. It replaces all of them.
type SettingsRequest struct {
	MaxVMs            uint64       `json:"max_vms" doc:"VMs that one block may touch without confirm_within or force"`
	MaxAddresses      uint64       `json:"max_addresses" doc:"Addresses that one block may touch without confirm_within or force; IPv6 counts in /64 networks"`
	Redirect          RedirectPage `json:"redirect" doc:"What visitors of a redirected VM are shown"`
	Voters            int          `json:"voters,omitempty" enum:"1,3,5,7" doc:"How many nodes vote, if there are that many; 3 if it is left out"`
	ReplaceVoterAfter string       `json:"replace_voter_after,omitempty" maxLength:"32" doc:"How long a voter is dead before another node takes its place; 5m if it is left out" example:"5m"`
	SourceGuard       string       `json:"source_guard,omitempty" enum:"on,off" doc:"Whether VMs may use their registered addresses alone, unless they say otherwise; left out, it stays as it is"`
}

// RedirectPage is what visitors of a redirected VM are shown.
type RedirectPage struct {
	Title string `json:"title" maxLength:"4096"`
	Text  string `json:"text" maxLength:"4096" doc:"Plain text"`
	Link  string `json:"link" maxLength:"4096" doc:"http or https URL, or empty"`
}
