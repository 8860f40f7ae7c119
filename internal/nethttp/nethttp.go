// Package nethttp reads from the insides of net/http and crypto/tls what they
// tell nobody. Each function has a test that fails when a release of Go has
// other insides, and says there what is lost then.
package nethttp

import (
	"net"
	"net/http"
	"reflect"
)

// TLSInner returns the field of a listener of crypto/tls that holds the one
// below, to be read and set. The listener's type is not exported; the field, an
// embedded net.Listener, is.
//
// If there is no such field, the sockets of listeners from tls.NewListener
// cannot be emptied before they are closed.
func TLSInner(l net.Listener) (field reflect.Value, ok bool) {
	v := reflect.ValueOf(l)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct || v.Elem().Type().PkgPath() != "crypto/tls" {
		return reflect.Value{}, false
	}
	field = v.Elem().FieldByName("Listener")
	return field, field.IsValid() && field.CanSet() && field.Type() == reflect.TypeFor[net.Listener]()
}

// Progress is how far a response has come.
type Progress struct {
	Sent       bool // its header
	Whole      bool // net/http says itself if it is not, or nothing is missing
	UntilClose bool // its end is that of the connection
}

// ProgressOf looks into the ResponseWriter of net/http, which tells nobody. It
// must be called on the handler's goroutine. If the fields are others than those
// of Go 1.26 and 1.27, the zero Progress comes back, and a response that was cut
// looks whole; TestProgressOf tells.
func ProgressOf(w http.ResponseWriter, r *http.Request) (p Progress) {
	for {
		inner, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = inner.Unwrap()
	}
	bodyless := r.Method == http.MethodHead
	v := structOf(reflect.ValueOf(w))
	if inner := structOf(fieldOf(v, "ResponseWriter")); inner.IsValid() { // HTTP/2 from Go 1.27 on
		v = inner
	}
	if rws := structOf(fieldOf(v, "rws")); rws.IsValid() { // HTTP/2
		p.Sent = boolOf(rws, "sentHeader")
		length, ok := intOf(rws, "sentContentLen")
		written, _ := intOf(rws, "wroteBytes")
		status, _ := intOf(rws, "status")
		p.Whole = !ok || bodyless || !hasBodyStatus(status) || length > 0 && written >= length || w.Header().Get("Content-Length") == "0"
		return p
	}
	cw := fieldOf(v, "cw")
	length, ok := intOf(v, "contentLength")
	status, _ := intOf(v, "status")
	p.Sent = boolOf(cw, "wroteHeader")
	// If less is written than was declared, net/http breaks the connection.
	p.Whole = !ok || bodyless || !hasBodyStatus(status) || length >= 0
	p.UntilClose = p.Sent && !p.Whole && !boolOf(cw, "chunking")
	return p
}

// hasBodyStatus reports whether a response of that status has a body.
func hasBodyStatus(status int64) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

func structOf(v reflect.Value) reflect.Value {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v
}

func fieldOf(v reflect.Value, name string) reflect.Value {
	if v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v.FieldByName(name)
}

func boolOf(v reflect.Value, name string) bool {
	f := fieldOf(v, name)
	return f.Kind() == reflect.Bool && f.Bool()
}

func intOf(v reflect.Value, name string) (n int64, ok bool) {
	if f := fieldOf(v, name); f.CanInt() {
		return f.Int(), true
	}
	return 0, false
}
