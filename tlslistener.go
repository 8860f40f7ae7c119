package usher

import (
	"net"
	"reflect"
)

// listenerUnderTLS returns the Listener that a listener of crypto/tls accepts
// from, or nil.
func listenerUnderTLS(l net.Listener) *Listener {
	if f, ok := tlsInner(l); ok {
		ours, _ := f.Interface().(*Listener)
		return ours
	}
	return nil
}

// tlsInner returns the field of a listener of crypto/tls that holds the one
// below. Its type is not exported; the field, an embedded net.Listener, is.
func tlsInner(l net.Listener) (field reflect.Value, ok bool) {
	v := reflect.ValueOf(l)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct || v.Elem().Type().PkgPath() != "crypto/tls" {
		return reflect.Value{}, false
	}
	field = v.Elem().FieldByName("Listener")
	return field, field.IsValid() && field.CanSet() && field.Type() == reflect.TypeFor[net.Listener]()
}
