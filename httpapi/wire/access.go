package wire

import "time"

// Token is an API token. Its text is shown once, when it is created.
type Token struct {
	Name      string    `json:"name" example:"billing"`
	Scope     string    `json:"scope" enum:"admin,operator,billing,viewer,metrics"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	Expired   bool      `json:"expired,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	Actor     string    `json:"actor" doc:"Who created it"`
	Revision  uint64    `json:"revision"`
}

// NewToken is a token that was just created.
type NewToken struct {
	Token
	Secret string `json:"secret" doc:"The token itself, for Authorization: Bearer. It is shown here and never again"`
}

// TokenRequest asks for a token.
type TokenRequest struct {
	Name      string    `json:"name" maxLength:"64" example:"billing" doc:"Appears as actor token:NAME"`
	Scope     string    `json:"scope" enum:"admin,operator,billing,viewer,metrics"`
	ExpiresAt time.Time `json:"expires_at,omitzero" doc:"When it ends; without it, never"`
}

// User may log in with a password.
type User struct {
	Name      string    `json:"name" example:"ann"`
	Scope     string    `json:"scope" enum:"admin,operator,billing,viewer,metrics"`
	CreatedAt time.Time `json:"created_at"`
	Actor     string    `json:"actor" doc:"Who changed it last"`
	Revision  uint64    `json:"revision"`
}

// UserRequest creates or changes a user. A change ends all sessions of the user.
type UserRequest struct {
	Scope    string `json:"scope,omitempty" enum:"admin,operator,billing,viewer,metrics" doc:"Without it, the scope stays; a new user needs one"`
	Password string `json:"password,omitempty" maxLength:"1024" doc:"Without it, the password stays; a new user needs one. At least 12 characters"`
}

// PasswordRequest changes the caller's own password.
type PasswordRequest struct {
	Old string `json:"old" maxLength:"1024"`
	New string `json:"new" maxLength:"1024" doc:"At least 12 characters"`
}

// LoginMethods says how one can log in on a node.
type LoginMethods struct {
	Password bool `json:"password"`
	OIDC     bool `json:"oidc" doc:"An identity provider is configured: /v1/login/oidc sends the browser there"`
}

// LoginRequest is a login.
type LoginRequest struct {
	User     string `json:"user" maxLength:"64"`
	Password string `json:"password" maxLength:"1024"`
}

// Session is one login.
type Session struct {
	ID        string    `json:"id"`
	User      string    `json:"user" doc:"A user, or oidc: and whom the identity provider named"`
	Scope     string    `json:"scope" enum:"admin,operator,billing,viewer,metrics"`
	From      string    `json:"from" doc:"Where the login came from"`
	CreatedAt time.Time `json:"created_at"`
	LastUsed  time.Time `json:"last_used" doc:"To some minutes"`
	ExpiresAt time.Time `json:"expires_at" doc:"At the latest"`
	Idle      string    `json:"idle" example:"1h0m0s" doc:"It ends when it was not used for so long"`
	Expired   bool      `json:"expired,omitempty"`
	Current   bool      `json:"current,omitempty" doc:"It is the caller's own"`
}

// Whoami says as whom a caller is known.
type Whoami struct {
	Actor   string   `json:"actor" example:"user:ann"`
	Scope   string   `json:"scope" enum:"admin,operator,billing,viewer,metrics"`
	Session *Session `json:"session,omitempty" doc:"Of a caller that logged in"`
	// CSRFHeader is named only to callers that need it.
	CSRFHeader string   `json:"csrf_header,omitempty" doc:"Header, of any value, that every request of this session must have that changes something"`
	May        []string `json:"may" nullable:"false" doc:"What the scope may do: ids of operations of this document, sorted"`
	Node       string   `json:"node" doc:"That answered"`
	Version    string   `json:"version" doc:"Of that node"`
	Fleet      string   `json:"fleet,omitempty"`
	Epoch      uint64   `json:"epoch,omitempty" doc:"Grows when the fleet goes on from a backup or from one node: log indexes of before mean nothing then"`
}
