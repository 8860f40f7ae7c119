//go:build !unix

package prefork

func testProgram() int { return 2 }
