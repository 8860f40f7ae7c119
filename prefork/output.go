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
	mu   sync.Mutex
	tail []byte // the last tailSize bytes
	dump []byte // from the first line of a dump on, the first outputSize bytes
}

const tailSize = outputSize / 4

var dumpMarks = [][]byte{[]byte("panic: "), []byte("fatal error: "), []byte("SIGQUIT: "), []byte("runtime: "), []byte("unexpected fault address")}

// Write never fails.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	dumping := len(o.dump) > 0 && len(o.dump) < outputSize
	if from := dumpAt(p); from >= 0 && !dumping {
		o.dump = append(o.dump[:0], p[from:min(len(p), from+outputSize)]...)
	} else if dumping {
		o.dump = append(o.dump, p[:min(len(p), outputSize-len(o.dump))]...)
	}
	o.tail = append(o.tail, p...)
	if over := len(o.tail) - tailSize; over > 0 {
		o.tail = append(o.tail[:0], o.tail[over:]...)
	}
	return len(p), nil
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

// String returns the dump, if there is one, and the last lines.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.tail) <= len(o.dump) && bytes.HasSuffix(o.dump, o.tail) {
		return string(o.dump)
	}
	if before, after, ok := bytes.Cut(o.tail, o.dump); ok {
		return string(before) + string(o.dump) + string(after)
	}
	return string(o.dump) + "\n...\n" + string(o.tail)
}
