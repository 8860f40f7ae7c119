package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/seed-235859eb/usher/bench/report"
	"github.com/seed-235859eb/usher/internal/process"
)

// build builds the server, and notes what the figures are of.
func (l *lab) build(ctx context.Context) (err error) {
	if l.server, err = process.BuildServer(ctx, l.dir, ""); err != nil {
		return err
	}
	l.about = fmt.Sprintf("%s, %s, usher %s", runtime.Version(), report.Machine(), report.Revision(ctx, "."))
	if l.usherSlots > 0 {
		l.about += fmt.Sprintf(" with Slots: %d", l.usherSlots)
	}
	return nil
}

// start starts a server, whose files go to the lab's directory.
func (l *lab) start(ctx context.Context, spec process.Spec) (*process.Process, error) {
	spec.Env = append(spec.Env, "TMPDIR="+l.dir)
	return process.Start(ctx, spec)
}
