//go:build race

package fairqueue

const raceEnabled = true
