package report

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text returns the page without its plots, for a terminal.
func (p *Page) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n", p.Title, strings.Repeat("=", utf8.RuneCountInString(p.Title)))
	paragraph(&b, p.Lead)
	for _, s := range p.Sections {
		fmt.Fprintf(&b, "\n%s\n%s\n", s.Title, strings.Repeat("-", utf8.RuneCountInString(s.Title)))
		paragraph(&b, s.Text)
		for _, t := range s.Tables {
			b.WriteByte('\n')
			b.WriteString(t.Text())
		}
	}
	b.WriteByte('\n')
	for _, line := range p.origin() {
		fmt.Fprintf(&b, "%s: %s\n", line[0], line[1])
	}
	return b.String()
}

// origin says where the page's figures come from.
func (p *Page) origin() (lines [][2]string) {
	if p.Command != "" {
		lines = append(lines, [2]string{"Command", p.Command})
	}
	if !p.Date.IsZero() {
		lines = append(lines, [2]string{"Date", p.Date.UTC().Format("2006-01-02 15:04 UTC")})
	}
	if len(p.Versions) > 0 {
		lines = append(lines, [2]string{"Versions", strings.Join(p.Versions, ", ")})
	}
	if p.Machine != "" {
		lines = append(lines, [2]string{"Machine", p.Machine})
	}
	return lines
}

// paragraph writes text in lines of a readable length.
func paragraph(b *strings.Builder, text string) {
	const width = 80
	for part := range strings.SplitSeq(text, "\n\n") {
		n := 0
		for i, word := range strings.Fields(part) {
			w := utf8.RuneCountInString(word)
			switch {
			case i == 0:
				b.WriteByte('\n')
			case n+1+w > width:
				b.WriteByte('\n')
				n = 0
			default:
				b.WriteByte(' ')
				n++
			}
			b.WriteString(word)
			n += w
		}
		if n > 0 {
			b.WriteByte('\n')
		}
	}
}

// Text returns the table in aligned columns.
func (t Table) Text() string {
	widths := make([]int, t.columns())
	for _, row := range t.all() {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	if t.Caption != "" {
		fmt.Fprintln(&b, t.Caption)
	}
	right := t.numeric()
	for n, row := range t.all() {
		var line strings.Builder
		for i := range widths {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(t.cell(row, i)))
			if i > 0 {
				line.WriteString("   ")
			}
			if right[i] {
				line.WriteString(pad + t.cell(row, i))
			} else {
				line.WriteString(t.cell(row, i) + pad)
			}
		}
		fmt.Fprintln(&b, strings.TrimRight(line.String(), " "))
		if n == 0 && len(t.Header) > 0 {
			for i, w := range widths {
				if i > 0 {
					b.WriteString("   ")
				}
				b.WriteString(strings.Repeat("-", w))
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// all returns the header, if there is one, and the rows.
func (t Table) all() [][]string {
	if len(t.Header) == 0 {
		return t.Rows
	}
	return append([][]string{t.Header}, t.Rows...)
}

// columns returns the length of the longest row.
func (t Table) columns() (n int) {
	for _, row := range t.all() {
		n = max(n, len(row))
	}
	return n
}

// cell returns one, empty if the row is too short.
func (t Table) cell(row []string, i int) string {
	if i < len(row) {
		return row[i]
	}
	return ""
}

// numeric says which columns stand to the right: those of which some cell
// begins with a number, and no other with a word.
func (t Table) numeric() []bool {
	right := make([]bool, t.columns())
	for i := range right {
		numbers, words := 0, 0
		for _, row := range t.Rows {
			cell := strings.TrimLeft(t.cell(row, i), "≤≥<>~±+-−–— ")
			r, _ := utf8.DecodeRuneInString(cell)
			switch {
			case cell == "":
			case unicode.IsDigit(r):
				numbers++
			default:
				words++
			}
		}
		right[i] = numbers > 0 && words == 0
	}
	return right
}
