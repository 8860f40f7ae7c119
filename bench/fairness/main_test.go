package fairness

import (
	"flag"
	"os"
	"strconv"
	"testing"
)

func TestMain(m *testing.M) {
	ServeIfChild()
	flag.Parse()
	flag.Set("test.parallel", strconv.Itoa(len(Contenders)))
	os.Exit(m.Run())
}
