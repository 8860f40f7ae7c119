package report

import (
	"fmt"
	"regexp"
	"strings"
)

// Markdown returns the page as a part of a document, with headings from the
// second level on, and its plots as files. The document refers to these in the
// folder plots.
func (p *Page) Markdown(plots string) (text string, files map[string]string) {
	var b strings.Builder
	files = make(map[string]string)
	fmt.Fprintf(&b, "## %s\n\n", markdownText(p.Title))
	if p.Lead != "" {
		fmt.Fprintf(&b, "%s\n\n", markdownText(p.Lead))
	}
	if p.Command != "" {
		fmt.Fprintf(&b, "    %s\n\n", p.Command)
	}
	var origin []string
	for _, line := range p.origin() {
		if line[0] != "Command" {
			origin = append(origin, line[1])
		}
	}
	if len(origin) > 0 {
		fmt.Fprintf(&b, "%s.\n\n", markdownText(strings.Join(origin, "; ")))
	}
	n := 0
	for _, s := range p.Sections {
		fmt.Fprintf(&b, "### %s\n\n", markdownText(s.Title))
		if s.Text != "" {
			fmt.Fprintf(&b, "%s\n\n", markdownText(s.Text))
		}
		for _, plot := range s.Plots {
			n++
			name := fmt.Sprintf("%s-%d.svg", p.Name, n)
			files[name] = plot.SVG()
			fmt.Fprintf(&b, "![%s](%s/%s)\n\n", markdownText(strings.NewReplacer("[", "(", "]", ")").Replace(plot.title())), plots, name)
			if plot.See != "" {
				fmt.Fprintf(&b, "%s\n\n", markdownText(plot.See))
			}
		}
		for _, t := range s.Tables {
			if t.Caption != "" {
				fmt.Fprintf(&b, "%s\n\n", markdownText(t.Caption))
			}
			b.WriteString(t.Markdown())
			b.WriteByte('\n')
		}
		if s.Command != "" {
			fmt.Fprintf(&b, "    %s\n\n", s.Command)
		}
	}
	return b.String(), files
}

// Markdown returns the table as GitHub has them.
func (t Table) Markdown() string {
	var b strings.Builder
	row := func(cells []string) {
		for i := range t.columns() {
			fmt.Fprintf(&b, "| %s ", markdownText(strings.ReplaceAll(t.cell(cells, i), "|", `\|`)))
		}
		b.WriteString("|\n")
	}
	row(t.Header)
	for _, right := range t.numeric() {
		if right {
			b.WriteString("|---:")
		} else {
			b.WriteString("|---")
		}
	}
	b.WriteString("|\n")
	for _, r := range t.Rows {
		row(r)
	}
	return b.String()
}

// markdownText escapes text, in which `this` is code.
func markdownText(text string) string {
	parts := strings.Split(text, "`")
	if len(parts)%2 == 0 {
		return strings.ReplaceAll(markdownEscape(text), "`", "\\`")
	}
	for i := 0; i < len(parts); i += 2 {
		parts[i] = markdownEscape(parts[i])
	}
	return strings.Join(parts, "`")
}

func markdownEscape(text string) string {
	// Emphasis begins before a word, never in the middle of one.
	text = edgeOfWord.ReplaceAllString(text, `$1\_`)
	return markdownEscapes.Replace(text)
}

var (
	edgeOfWord      = regexp.MustCompile(`(^|\W)_`)
	markdownEscapes = strings.NewReplacer("<", "&lt;", ">", "&gt;", "&", "&amp;", "*", `\*`)
)
