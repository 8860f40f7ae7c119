package report

import (
	"fmt"
	"html"
	"strings"
)

// pageStyle is that of the page around the plots.
const pageStyle = `
:root{color-scheme:light dark;--page:#fff;--text:#1d2129;--dim:#5a6270;--rule:#dfe3e8;--box:#f5f7f9;--link:#0072b2}
@media(prefers-color-scheme:dark){:root{--page:#14171c;--text:#e6e8eb;--dim:#a3abb8;--rule:#2b313a;--box:#1c2128;--link:#56b4e9}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:54rem;margin:0 auto;padding:2.5rem 1.5rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 1rem;letter-spacing:-.01em}
h2{font-size:1.3rem;line-height:1.3;margin:3rem 0 .5rem;padding-top:1.5rem;border-top:1px solid var(--rule)}
p{margin:.6rem 0;max-width:42rem}
code,pre{font:.9em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
code{background:var(--box);padding:.1em .3em;border-radius:4px;overflow-wrap:anywhere}
pre{background:var(--box);padding:.75rem 1rem;border-radius:6px;overflow-x:auto;margin:.6rem 0}
pre code{background:none;padding:0;overflow-wrap:normal}
figure{margin:1.75rem 0}
figcaption{color:var(--dim);font-size:.95rem;margin:.5rem 0;max-width:42rem}
.plot{display:block;width:100%;height:auto}
.plot.wide{max-width:720px}
.plot.narrow{display:none}
.box{overflow-x:auto;border:1px solid var(--rule);border-radius:6px}
.box:focus-visible{outline:2px solid var(--link);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .8rem;text-align:left;vertical-align:top;border-top:1px solid var(--rule)}
td{white-space:nowrap}
td.long{white-space:normal;min-width:14rem}
thead th{border-top:0;min-width:4.6rem;background:var(--box);font-weight:600;vertical-align:bottom}
tbody th{font-weight:500}
.n{text-align:right}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1rem;font-size:.92rem;margin:.6rem 0}
dt{color:var(--dim)}
dd{margin:0;overflow-wrap:anywhere}
@media(max-width:46rem){
main{padding:1.5rem 1rem 3rem}
h1{font-size:1.55rem}
.plot.wide{display:none}
.plot.narrow{display:block;max-width:30rem}
th,td{padding:.4rem .6rem}
tbody th,thead th:first-child{position:sticky;left:0;max-width:42vw}
tbody th{background:var(--page)}
dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:.6rem}
}
@media print{.box{overflow:visible}figure{break-inside:avoid}}
`

// HTML returns the page as one file that needs nothing else.
func (p *Page) HTML() string {
	var b strings.Builder
	title := html.EscapeString(p.Title)
	fmt.Fprintf(&b, `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%s</title>
<style>%s%s</style>
</head>
<body>
<main>
<h1>%s</h1>
`, title, pageStyle, plotStyle, title)
	htmlParagraphs(&b, p.Lead)
	for i, s := range p.Sections {
		fmt.Fprintf(&b, "<section aria-labelledby=\"s%d\">\n<h2 id=\"s%d\">%s</h2>\n", i, i, html.EscapeString(s.Title))
		htmlParagraphs(&b, s.Text)
		for j, plot := range s.Plots {
			plot.html(&b, fmt.Sprintf("p%d-%d", i, j))
		}
		for j, t := range s.Tables {
			t.html(&b, fmt.Sprintf("t%d-%d", i, j))
		}
		if s.Command != "" {
			fmt.Fprintf(&b, "<pre><code>%s</code></pre>\n", html.EscapeString(s.Command))
		}
		b.WriteString("</section>\n")
	}
	if origin := p.origin(); len(origin) > 0 {
		b.WriteString("<section aria-labelledby=\"origin\">\n<h2 id=\"origin\">Where these figures come from</h2>\n")
		if p.Command != "" {
			fmt.Fprintf(&b, "<pre><code>%s</code></pre>\n", html.EscapeString(p.Command))
			origin = origin[1:]
		}
		b.WriteString("<dl>\n")
		for _, line := range origin {
			fmt.Fprintf(&b, "<dt>%s</dt><dd>%s</dd>\n", html.EscapeString(line[0]), html.EscapeString(line[1]))
		}
		b.WriteString("</dl>\n</section>\n")
	}
	b.WriteString("</main>\n</body>\n</html>\n")
	return b.String()
}

// htmlParagraphs writes text, in which `this` is code.
func htmlParagraphs(b *strings.Builder, text string) {
	for part := range strings.SplitSeq(text, "\n\n") {
		if strings.TrimSpace(part) != "" {
			fmt.Fprintf(b, "<p>%s</p>\n", htmlText(part))
		}
	}
}

// htmlText escapes text, in which `this` is code.
func htmlText(text string) string {
	parts := strings.Split(noBreak(text), "`")
	if len(parts)%2 == 0 {
		return html.EscapeString(text) // one of them has no partner
	}
	var b strings.Builder
	for i, part := range parts {
		if i%2 == 1 {
			b.WriteString("<code>" + html.EscapeString(part) + "</code>")
		} else {
			b.WriteString(html.EscapeString(part))
		}
	}
	return b.String()
}

// html writes the plot for both sizes of screen, of which one shows.
func (p Plot) html(b *strings.Builder, id string) {
	b.WriteString("<figure>\n")
	for _, s := range []size{wide, narrow} {
		b.WriteString(p.draw(s).svg(id+s.name, p.title(), p.See, ""))
	}
	if p.See != "" {
		fmt.Fprintf(b, "<figcaption>%s</figcaption>\n", htmlText(p.See))
	}
	b.WriteString("</figure>\n")
}

// html writes the table in a box in which it can be scrolled.
func (t Table) html(b *strings.Builder, id string) {
	const long = 40 // from here on a cell may be broken into lines
	b.WriteString("<figure>\n")
	label := ""
	if t.Caption != "" {
		fmt.Fprintf(b, "<figcaption id=\"%s\">%s</figcaption>\n", id, htmlText(t.Caption))
		label = fmt.Sprintf(` aria-labelledby="%s"`, id)
	}
	fmt.Fprintf(b, "<div class=\"box\" role=\"region\" tabindex=\"0\"%s>\n<table%s>\n", label, label)
	right := t.numeric()
	class := func(i int, cell string) string {
		switch {
		case right[i]:
			return ` class="n"`
		case len(cell) > long:
			return ` class="long"`
		}
		return ""
	}
	if len(t.Header) > 0 {
		b.WriteString("<thead><tr>")
		for i := range right {
			cell := t.cell(t.Header, i)
			c := ""
			if right[i] {
				c = ` class="n"`
			}
			fmt.Fprintf(b, `<th scope="col"%s>%s</th>`, c, htmlText(cell))
		}
		b.WriteString("</tr></thead>\n")
	}
	b.WriteString("<tbody>\n")
	for _, row := range t.Rows {
		b.WriteString("<tr>")
		for i := range right {
			cell := t.cell(row, i)
			if i == 0 {
				fmt.Fprintf(b, `<th scope="row"%s>%s</th>`, class(i, ""), htmlText(cell))
			} else {
				fmt.Fprintf(b, `<td%s>%s</td>`, class(i, cell), htmlText(cell))
			}
		}
		b.WriteString("</tr>\n")
	}
	b.WriteString("</tbody>\n</table>\n</div>\n</figure>\n")
}
