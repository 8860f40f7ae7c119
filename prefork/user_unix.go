//go:build unix

package prefork

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// credential returns whom the workers run as, or nil if that is who the master
// runs as.
func (o Options) credential() (*syscall.Credential, error) {
	if o.User == "" && o.Group == "" {
		return nil, nil
	}
	c := &syscall.Credential{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid()), NoSetGroups: true}
	if o.User != "" {
		u, err := user.Lookup(o.User)
		if err != nil {
			if u, err = user.LookupId(o.User); err != nil {
				return nil, fmt.Errorf("prefork: Options.User is %q: %w", o.User, err)
			}
		}
		groups, err := u.GroupIds()
		if err != nil {
			return nil, fmt.Errorf("prefork: Options.User is %q: its groups: %w", o.User, err)
		}
		if c.Uid, err = id(u.Uid); err == nil {
			c.Gid, err = id(u.Gid)
		}
		c.NoSetGroups = false
		for _, g := range groups {
			n, gerr := id(g)
			if gerr != nil {
				err = gerr
			}
			c.Groups = append(c.Groups, n)
		}
		if err != nil {
			return nil, fmt.Errorf("prefork: Options.User is %q: %w", o.User, err)
		}
	}
	if o.Group != "" {
		g, err := user.LookupGroup(o.Group)
		if err != nil {
			if g, err = user.LookupGroupId(o.Group); err != nil {
				return nil, fmt.Errorf("prefork: Options.Group is %q: %w", o.Group, err)
			}
		}
		if c.Gid, err = id(g.Gid); err != nil {
			return nil, fmt.Errorf("prefork: Options.Group is %q: %w", o.Group, err)
		}
	}
	switch {
	case int(c.Uid) == os.Geteuid() && int(c.Gid) == os.Getegid():
		return nil, nil
	case os.Geteuid() != 0:
		return nil, fmt.Errorf("prefork: Options.User is %q and Options.Group is %q: the master must be root for that, and is user %d", o.User, o.Group, os.Geteuid())
	}
	return c, nil
}

func id(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}
