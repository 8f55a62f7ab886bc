package main

import (
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	fenced  = regexp.MustCompile("(?ms)^```.*?^```")
	inline  = regexp.MustCompile("`[^`\n]*`")
	linked  = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the parts of a page that a link can lead to, as GitHub names them: by their headings.
func anchors(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		title := dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), "")
		out[strings.ReplaceAll(title, " ", "-")] = true
	}
	return out
}

// TestLinksInGuides follows every link of every page of the repository that leads to a file or a heading in it.
func TestLinksInGuides(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules" || d.Name() == "bin" || d.Name() == "dist"):
			return fs.SkipDir
		case strings.HasSuffix(path, ".md"):
			b, err := os.ReadFile(path)
			pages[path] = string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	links := 0
	for page, text := range pages {
		name, _ := filepath.Rel(root, page)
		for _, m := range linked.FindAllStringSubmatch(inline.ReplaceAllString(fenced.ReplaceAllString(text, ""), ""), -1) {
			u, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %s: %v", name, m[1], err)
				continue
			}
			if u.Scheme != "" {
				continue // elsewhere
			}
			links++
			target := page
			if u.Path != "" {
				target = filepath.Join(filepath.Dir(page), u.Path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link %s leads nowhere: %v", name, m[1], err)
			} else if to, isPage := pages[target]; u.Fragment != "" && isPage && !anchors(to)[u.Fragment] {
				t.Errorf("%s: the link %s: there is no such heading", name, m[1])
			}
		}
	}
	if links < 40 {
		t.Errorf("only %d links were found", links)
	}
	// A guide that no other page names is found by nobody.
	guides, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, guide := range guides {
		if !strings.Contains(pages[filepath.Join(root, "README.md")], "(docs/"+filepath.Base(guide)) {
			t.Errorf("README.md has no link to docs/%s", filepath.Base(guide))
		}
	}
}
