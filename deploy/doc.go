// Package deploy tests the files beside it, as far as they can be run without
// the systems that they are for. nginx.conf, haproxy.cfg and Caddyfile are run by
// bench/lab.
package deploy
