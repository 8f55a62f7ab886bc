package httpapi

import (
	"context"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type getSettingsInput struct{ ReadInput }

type settingsOutput struct {
	ReadHeaders
	ETag string `header:"ETag" doc:"Absent while they are those of a new fleet"`
	Body wire.Settings
}

func (s *Server) getSettings(ctx context.Context, in *getSettingsInput) (*settingsOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	st := v.Settings()
	return &settingsOutput{ReadHeaders: h, ETag: etag(st.Revision), Body: wireSettings(&st)}, nil
}

type putSettingsInput struct {
	WriteInput
	MatchInput
	Body wire.SettingsRequest
}

type putSettingsOutput struct {
	WriteHeaders
	Body wire.Settings
}

func (s *Server) putSettings(ctx context.Context, in *putSettingsInput) (*putSettingsOutput, error) {
	rev, err := in.revision()
	if err != nil {
		return nil, err
	}
	page := in.Body.Redirect
	var after time.Duration
	if text := in.Body.ReplaceVoterAfter; text != "" {
		if after, err = wire.ParseDuration(text); err != nil {
			return nil, fieldProblem("body.replace_voter_after", text, "%s", err)
		}
	}
	guard := in.Body.SourceGuard == string(fsm.SourceOn)
	if in.Body.SourceGuard == "" {
		guard = s.opts.Backend.View().Settings().SourceGuard
	}
	op := fsm.PutSettings{IfRevision: rev, Settings: fsm.Settings{
		MaxVMs: in.Body.MaxVMs, MaxAddresses: in.Body.MaxAddresses,
		Voters: uint32(in.Body.Voters), ReplaceVoterAfter: after, //nolint:gosec // one of four numbers
		RedirectTitle: page.Title, RedirectText: page.Text, RedirectLink: page.Link, SourceGuard: guard,
	}}
	res, err := s.propose(ctx, in.WriteInput, op, sent{
		"redirect_title":      at("body.redirect.title", page.Title),
		"redirect_text":       at("body.redirect.text", nil),
		"redirect_link":       at("body.redirect.link", page.Link),
		"voters":              at("body.voters", in.Body.Voters),
		"replace_voter_after": at("body.replace_voter_after", in.Body.ReplaceVoterAfter),
		"if_revision":         at("header.If-Match", in.IfMatch),
	}.just)
	if err != nil {
		return nil, err
	}
	if res.Settings == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no settings", res.Index)
	}
	return &putSettingsOutput{
		WriteHeaders: WriteHeaders{ETag: etag(res.Settings.Revision), Index: res.Index, Replayed: replayed(res)},
		Body:         wireSettings(res.Settings),
	}, nil
}
