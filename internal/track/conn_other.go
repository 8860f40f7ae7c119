//go:build !unix

package track

// initRaw does nothing: this system does not tell that a read would block.
func (c *Conn) initRaw() {}

// rawRead is not called.
func (c *Conn) rawRead(uintptr) bool { return true }

// Unread reports false: this system does not tell.
func (c *Conn) Unread() bool { return false }

// WatchHangUp never tells.
func (c *Conn) WatchHangUp() (hungUp <-chan struct{}, stop func()) { return nil, func() {} }

// writable reports false: this system does not tell.
func (c *Conn) writable() bool { return false }
