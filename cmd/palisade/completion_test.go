package main

import (
	"bytes"
	"context"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func script(t *testing.T, shell string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(context.Background(), []string{"completion", shell}, &out, &errs); code != 0 {
		t.Fatalf("%d: %s", code, &errs)
	}
	return out.String()
}

// The script is given to bash, which completes as it would for a user.
func TestBashCompletion(t *testing.T) {
	for line, want := range map[string]string{
		"palisade bl":                        "block",
		"palisade block ":                    "add ls show edit confirm lift receipts bulk",
		"palisade -o json --socket x vm s":   "show set",
		"palisade -o ":                       "text json",
		"palisade --output j":                "json",
		"palisade block ls --state ":         "pending active lifted ended all",
		"palisade block add --reas":          "--reason",
		"palisade block add vm --no":         "--note",
		"palisade completion --soc":          "--socket",
		"palisade demo ":                     "up status migrate down",
		"palisade block add --kind ":         "drop reject limit ports redirect",
		"palisade block add --reason un":     "unpaid",
		"palisade block ls --kind li":        "limit",
		"palisade events --fr":               "--from",
		"palisade block add --reason add --": "--vm --prefix",
	} {
		words := strings.Split(line, " ")
		quoted := make([]string, len(words))
		for i, w := range words {
			quoted[i] = "'" + w + "'"
		}
		in := script(t, "bash") + "\nCOMP_WORDS=(" + strings.Join(quoted, " ") + "); COMP_CWORD=" +
			string(rune('0'+len(words)-1)) + "; _palisade; echo ${COMPREPLY[@]}\n"
		cmd := exec.Command("bash", "--norc", "--noprofile", "-u")
		cmd.Stdin = strings.NewReader(in)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", line, err, out)
		}
		for _, w := range strings.Fields(want) {
			if !strings.Contains(" "+strings.TrimSpace(string(out))+" ", " "+w+" ") {
				t.Errorf("%q: %q, want %q", line, out, want)
			}
		}
		if strings.HasSuffix(want, "guest") || strings.Contains(string(out), "guest ") && line == "palisade demo " {
			t.Errorf("%q offers a hidden command: %s", line, out)
		}
	}
}

func TestOtherShells(t *testing.T) {
	if z := script(t, "zsh"); !strings.HasPrefix(z, "#compdef palisade\n") || !strings.Contains(z, "bashcompinit") {
		t.Errorf("zsh: %.200s", z)
	}
	f := script(t, "fish")
	for _, want := range []string{
		"complete -c palisade -n '__fish_use_subcommand' -a block -d ",
		"-n '__fish_seen_subcommand_from block; and __fish_seen_subcommand_from add' -l note -r",
		"-l reason -x -a 'unpaid abuse attack maintenance legal manual'",
		"-l output -s o -x -a 'text json'",
	} {
		if !strings.Contains(f, want) {
			t.Errorf("fish lacks %s", want)
		}
	}
}

// The manual page has every command and flag, and nothing that groff does not understand.
func TestManualPage(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"man"}, &out, &errs); code != 0 {
		t.Fatalf("%d: %s", code, &errs)
	}
	page := out.String()
	for _, want := range []string{".SS \"block add\"", ".B \\-\\-confirm\\-within=DURATION", ".SS \"boot\"", "Exit codes: 0 done", "palisade block add web \\-\\-reason abuse"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	for line := range strings.Lines(page) {
		request, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(request, ".") && !slices.Contains(strings.Fields(".TH .SH .SS .TP .PP .RS .RE .B .I .BR .nf .fi"), request) {
			t.Errorf("%q is no request of ours", line)
		}
	}
}
