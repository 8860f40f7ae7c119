//go:build !unix

package usher

// initRaw does nothing: this system does not tell that a read would block.
func (c *Conn) initRaw() {}

// unread reports false: this system does not tell.
func (c *Conn) unread() bool { return false }

// watchHangUp never tells.
func (c *Conn) watchHangUp() (hungUp <-chan struct{}, stop func()) { return nil, func() {} }
