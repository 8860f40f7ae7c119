package prefork

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/seed-235859eb/usher/internal/leakcheck"
)

// TestMain is the program under test, if the environment says so: tests start
// the test binary again as a master, which starts it as workers. Otherwise it
// runs the tests, and fails the run if goroutines or descriptors are left.
func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		os.Exit(testProgram())
	}
	// Tests wait for processes most of the time. The flag, if given, wins.
	flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0)))
	os.Exit(leakcheck.Run(m))
}

// programEnv makes the test binary the program under test.
const programEnv = "PREFORK_TEST_PROGRAM"
