//go:build !unix

package prefork

import (
	"errors"
	"fmt"
	"log/slog"
)

func (o Options) startLog(*slog.Logger, <-chan struct{}) (end func(), err error) {
	if o.LogFile == "" {
		return func() {}, nil
	}
	return nil, fmt.Errorf("prefork: Options.LogFile is %q: %w", o.LogFile, errors.ErrUnsupported)
}
