package prefork

import (
	"bytes"
	"unicode/utf8"
)

// maxLine is how long a line of a worker's standard error may be to come out
// as one.
const maxLine = 64 << 10

// cutMark ends a piece of a line that was too long.
const cutMark = " [line cut, it goes on below]\n"

// A liner makes whole lines of a stream of bytes, so that the lines of several
// streams can go to one place without being torn.
type liner struct{ rest []byte }

// feed adds p and returns the lines that are complete, together.
func (l *liner) feed(p []byte) []byte {
	l.rest = append(l.rest, p...)
	var lines []byte
	if end := bytes.LastIndexByte(l.rest, '\n') + 1; end > 0 {
		lines = cutLong(l.rest[:end])
		l.rest = append(l.rest[:0], l.rest[end:]...)
	}
	for len(l.rest) > maxLine {
		n := cutAt(l.rest)
		lines = append(append(lines, l.rest[:n]...), cutMark...)
		l.rest = append(l.rest[:0], l.rest[n:]...)
	}
	return lines
}

// end returns the line that was begun, with an end.
func (l *liner) end() []byte {
	if len(l.rest) == 0 {
		return nil
	}
	line := append(l.rest, '\n')
	l.rest = nil
	return line
}

// cutLong returns a copy of lines in which the long ones have been cut.
func cutLong(lines []byte) []byte {
	var out []byte
	for line := range bytes.Lines(lines) {
		for len(line) > maxLine+1 {
			n := cutAt(line)
			out = append(append(out, line[:n]...), cutMark...)
			line = line[n:]
		}
		out = append(out, line...)
	}
	return out
}

// cutAt returns where to cut a line that is too long: not within a character.
func cutAt(line []byte) int {
	n := maxLine
	for n > maxLine-utf8.UTFMax && !utf8.RuneStart(line[n]) {
		n--
	}
	return n
}
