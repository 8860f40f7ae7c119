//go:build unix

package prefork

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// openLog makes the file at path standard output and standard error of this
// process. It is appended to. What is written meanwhile goes to the file before or
// to this one.
func openLog(path string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("prefork: Options.LogFile: %w", err)
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := errors.Join(unix.Dup2(fd, 1), unix.Dup2(fd, 2)); err != nil {
		return fmt.Errorf("prefork: Options.LogFile is %q: %w", path, err)
	}
	return nil
}

// isLog reports whether the file at path is the one that is written to.
func isLog(path string) bool {
	at, err := os.Stat(path)
	if err != nil {
		return false
	}
	open, err := os.Stdout.Stat()
	return err == nil && os.SameFile(at, open)
}

// lookForLog is how often it is looked whether the file has been moved.
const lookForLog = time.Second

// watchLog opens the file anew when it has been moved or removed, or reopen has an
// element, until stop is closed.
func watchLog(path string, reopen, stop <-chan struct{}, report func(error)) {
	tick := time.NewTicker(lookForLog)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if isLog(path) {
				continue
			}
		case <-reopen:
		case <-stop:
			return
		}
		if err := openLog(path); err != nil {
			report(err)
		}
	}
}

// startLog begins to write to Options.LogFile, if there is one, and returns what ends
// that: the file stays open.
func (o Options) startLog(log *slog.Logger, reopen <-chan struct{}) (end func(), err error) {
	if o.LogFile == "" {
		return func() {}, nil
	}
	path := atStart(o.LogFile)
	if err := openLog(path); err != nil {
		return nil, err
	}
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		watchLog(path, reopen, stop, func(err error) { log.Error("prefork: the log file cannot be opened anew", "error", err) })
	})
	return func() { close(stop); watching.Wait() }, nil
}

// ReopenLog opens [Options].LogFile anew, after it has been moved. That happens by
// itself within about a second, and with each restart.
func (m *Master) ReopenLog() error {
	if m.opts.LogFile == "" {
		return errors.New("prefork: ReopenLog: Options.LogFile is empty")
	}
	return openLog(atStart(m.opts.LogFile))
}
