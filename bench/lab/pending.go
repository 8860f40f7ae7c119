package main

import (
	"context"
	"errors"

	"github.com/seed-235859eb/usher/bench/report"
)

// What is not there yet. A line goes when its experiment comes.

var errPending = errors.New("not built yet")

func runStaleCode(context.Context, options) (*report.Page, error) { return nil, errPending }
