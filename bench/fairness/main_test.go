package fairness

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-235859eb/usher/bench/report"
)

func TestMain(m *testing.M) {
	ServeIfChild()
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() != "" {
		// As configuration that benchstat knows, beside goos and cpu.
		fmt.Printf("go: %s\nmachine: %s\n", runtime.Version(), report.Machine())
		if peers, err := versions(); err == nil {
			fmt.Printf("peers: %s\n", strings.ReplaceAll(peers, ",\n", ", "))
		}
	}
	flag.Set("test.parallel", strconv.Itoa(len(Contenders)))
	os.Exit(m.Run())
}
