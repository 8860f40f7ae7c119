package prefork

import (
	"bytes"
	"sync"
)

// outputSize is how much of a worker's standard error is kept. The end of it
// tells most; of a panic or a dump of goroutines the beginning does.
const outputSize = 64 << 10

// output keeps the last of what a worker wrote to standard error.
type output struct {
	mu     sync.Mutex
	tail   []byte // the last tailSize bytes
	before []byte // what tail was when the dump began
	dump   []byte // from the first line of a dump on, the first outputSize bytes
	since  int    // bytes from there on
}

const tailSize = outputSize / 4

var dumpMarks = [][]byte{[]byte("panic: "), []byte("fatal error: "), []byte("SIGQUIT: "), []byte("runtime: "), []byte("unexpected fault address")}

// Write never fails.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	rest := p
	dumping := len(o.dump) > 0 && len(o.dump) < outputSize
	if from := dumpAt(p); from >= 0 && !dumping {
		o.keep(p[:from])
		o.before = append(o.before[:0], o.tail...)
		o.dump, o.since, rest = o.dump[:0], 0, p[from:]
		dumping = true
	}
	if dumping {
		o.dump = append(o.dump, rest[:min(len(rest), outputSize-len(o.dump))]...)
	}
	o.since += len(rest)
	o.keep(rest)
	return len(p), nil
}

// keep adds p to the tail.
func (o *output) keep(p []byte) {
	o.tail = append(o.tail, p...)
	if over := len(o.tail) - tailSize; over > 0 {
		o.tail = append(o.tail[:0], o.tail[over:]...)
	}
}

// dumpAt returns where in p the first line of a dump begins, or -1.
func dumpAt(p []byte) int {
	first := -1
	for _, mark := range dumpMarks {
		for from := 0; ; {
			i := bytes.Index(p[from:], mark)
			if i < 0 {
				break
			}
			i += from
			if i == 0 || p[i-1] == '\n' {
				if first < 0 || i < first {
					first = i
				}
				break
			}
			from = i + 1
		}
	}
	return first
}

// String returns the last lines and, if there is a dump, that and the last lines
// before it, in which a worker may have said what is wrong.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.dump) == 0 {
		return string(o.tail)
	}
	after := o.since - len(o.dump)
	if after > len(o.tail) {
		return string(o.before) + string(o.dump) + "\n...\n" + string(o.tail)
	}
	return string(o.before) + string(o.dump) + string(o.tail[len(o.tail)-after:])
}
