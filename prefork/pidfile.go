package prefork

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// A pidFile is a file with this process's ID. It may be another's by the time
// that this process ends.
type pidFile string

// pidFile returns the file that the options ask for.
func (o Options) pidFile() (pidFile, error) {
	if o.PIDFile == "" {
		return "", nil
	}
	path := atStart(o.PIDFile)
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return "", fmt.Errorf("prefork: Options.PIDFile is %q: %w", o.PIDFile, err)
	}
	return pidFile(path), nil
}

// write puts the file in place, whole.
func (p pidFile) write() error {
	if p == "" {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(string(p)), filepath.Base(string(p))+".*")
	if err != nil {
		return fmt.Errorf("prefork: PID file: %w", err)
	}
	_, err = tmp.Write(ownPID())
	if cerr := tmp.Chmod(0o644); err == nil {
		err = cerr
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), string(p))
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("prefork: PID file: %w", err)
	}
	return nil
}

// remove removes the file if it is this process's.
func (p pidFile) remove() error {
	if p == "" {
		return nil
	}
	switch content, err := os.ReadFile(string(p)); {
	case os.IsNotExist(err):
		return nil
	case err != nil:
		return fmt.Errorf("prefork: PID file: %w", err)
	case !bytes.Equal(content, ownPID()):
		return nil
	}
	if err := os.Remove(string(p)); err != nil {
		return fmt.Errorf("prefork: PID file: %w", err)
	}
	return nil
}

func ownPID() []byte { return []byte(strconv.Itoa(os.Getpid()) + "\n") }
