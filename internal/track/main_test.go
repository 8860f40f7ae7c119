package track

import (
	"os"
	"testing"

	"github.com/seed-235859eb/usher/internal/leakcheck"
)

// TestMain fails the run if goroutines or descriptors are left behind.
func TestMain(m *testing.M) { os.Exit(leakcheck.Run(m)) }
