package prefork

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStartWithManyDescriptors: the child moves descriptors out of the way before
// it executes the program, which must not be where they go to, however many the
// master has open.
func TestStartWithManyDescriptors(t *testing.T) {
	program, err := openProgram("/bin/true", "", false)
	if err != nil {
		t.Skip(err)
	}
	defer program.close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for n := range 120 {
		fd, err := dupFD(int(null.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		spec := processSpec{setup: workerSetup{Generation: 1}}
		if spec.program, err = program.clone(); err != nil {
			t.Fatal(err)
		}
		if n%3 == 0 { // more of them, in another order
			for range 3 {
				fd, err := dupFD(int(null.Fd()))
				if err != nil {
					t.Fatal(err)
				}
				spec.setup.Sockets = append(spec.setup.Sockets, workerSocket{Name: "web", FD: fd})
			}
		}
		s, err := startProcess(spec)
		spec.close()
		if err != nil {
			t.Errorf("with %d descriptors more: %v", n, err)
			continue
		}
		if state, err := s.process.Wait(); err != nil || !state.Success() {
			t.Errorf("with %d descriptors more: %v, %v", n, state, err)
		}
		s.link.Close()
		s.stream.file.Close()
	}
}
