module github.com/seed-235859eb/usher

go 1.26.0

require (
	github.com/felixge/httpsnoop v1.1.0
	golang.org/x/net v0.62.0
	golang.org/x/sys v0.49.0
)
