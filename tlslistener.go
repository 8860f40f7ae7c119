package usher

import (
	"log/slog"
	"net"
	"reflect"
)

// underTLS returns a Listener below l if l is a listener of crypto/tls, else
// nil. It puts one there, if there is none: the socket below can be emptied
// before it is closed, and the connections below TLS tell what they do.
func underTLS(l net.Listener, opts ListenerOptions, log *slog.Logger) *Listener {
	field, ok := tlsInner(l)
	if !ok {
		return nil
	}
	inner, _ := field.Interface().(net.Listener)
	if inner == nil {
		return nil
	}
	below, ok := inner.(*Listener)
	if !ok {
		below = newListener(inner, opts, log)
		field.Set(reflect.ValueOf(below))
	}
	return below
}

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
