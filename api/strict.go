package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"turnout/api/client"
)

// maxDepth bounds the nesting of JSON from outside; the deepest type that is taken has three levels.
const maxDepth = 16

// decodeStrict decodes one JSON value into v, a pointer to a struct. Beyond encoding/json it refuses text that is not UTF-8, lone surrogates,
// duplicate members, null, members whose name is not exactly that of a field, and anything behind the value. prefix
// begins every location, such as "body". No message holds a value.
func decodeStrict(data []byte, v any, prefix string) *problem {
	if !utf8.Valid(data) {
		return badRequest(prefix, "is not UTF-8")
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return syntaxProblem(err, prefix)
	}
	if loneSurrogate(data) {
		return badRequest(prefix, "has half of a surrogate pair")
	}
	w := walker{dec: json.NewDecoder(bytes.NewReader(data))}
	w.dec.UseNumber()
	if p := w.value(prefix, 0, reflect.TypeOf(v).Elem()); p != nil {
		return p
	}
	if err := json.Unmarshal(data, v); err != nil {
		return typeProblem(err, prefix)
	}
	return nil
}

func syntaxProblem(err error, prefix string) *problem {
	var se *json.SyntaxError
	if !errors.As(err, &se) {
		return badRequest(prefix, "is not JSON")
	}
	if strings.Contains(se.Error(), "after top-level value") {
		return badRequest(prefix, fmt.Sprintf("has more data behind the JSON value, at byte %d", se.Offset))
	}
	return badRequest(prefix, fmt.Sprintf("is not JSON, at byte %d", se.Offset))
}

// typeProblem tells which member has the wrong type. The error's own text would repeat numbers.
func typeProblem(err error, prefix string) *problem {
	var te *json.UnmarshalTypeError
	if !errors.As(err, &te) {
		return unprocessable(prefix, "does not fit its type")
	}
	location := prefix
	if te.Field != "" {
		location = join(prefix, te.Field)
	}
	return unprocessable(location, "must be "+wanted(te.Type))
}

func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("a whole number from 0 to %d", ^uint64(0)>>(64-t.Bits()))
	case reflect.Slice:
		return "an array"
	}
	return "an object"
}

// walker reads a JSON value token by token beside the type that it is meant for.
type walker struct{ dec *json.Decoder }

// value checks one value. t is nil where anything goes; syntax is known to be good.
func (w walker) value(location string, depth int, t reflect.Type) *problem {
	if depth > maxDepth {
		return badRequest(location, fmt.Sprintf("is nested deeper than %d levels", maxDepth))
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	tok, err := w.dec.Token()
	if err != nil {
		return badRequest(location, "is not JSON")
	}
	switch tok {
	case nil:
		return unprocessable(location, "must not be null; leave it out instead")
	case json.Delim('{'):
		return w.object(location, depth, t)
	case json.Delim('['):
		var elem reflect.Type
		if t != nil && t.Kind() == reflect.Slice {
			elem = t.Elem()
		}
		for i := 0; w.dec.More(); i++ {
			if p := w.value(location+"["+strconv.Itoa(i)+"]", depth+1, elem); p != nil {
				return p
			}
		}
		return w.end(location)
	}
	return nil
}

func (w walker) object(location string, depth int, t reflect.Type) *problem {
	seen := map[string]bool{}
	for w.dec.More() {
		tok, err := w.dec.Token()
		name, ok := tok.(string)
		if err != nil || !ok {
			return badRequest(location, "is not JSON")
		}
		inner := join(location, name)
		if seen[name] {
			return badRequest(inner, "stands there twice")
		}
		seen[name] = true
		var member reflect.Type
		switch {
		case t == nil:
		case t.Kind() == reflect.Struct:
			if member = fieldType(t, name); member == nil {
				return unprocessable(inner, "is not a known field")
			}
		case t.Kind() == reflect.Map:
			member, inner = t.Elem(), location // member names are the sender's own: the place is the map
		}
		if p := w.value(inner, depth+1, member); p != nil {
			return p
		}
	}
	return w.end(location)
}

func (w walker) end(location string) *problem {
	if _, err := w.dec.Token(); err != nil {
		return badRequest(location, "is not JSON")
	}
	return nil
}

// fieldType returns the type of the field with this JSON name, nil if there is none. Case counts.
func fieldType(t reflect.Type, name string) reflect.Type {
	for i := range t.NumField() {
		f := t.Field(i)
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name && tag != "-" {
			return f.Type
		}
	}
	return nil
}

// maxLocationBytes bounds what a location repeats of a member's or a query parameter's name.
const maxLocationBytes = 128

// join makes the location of a member.
func join(prefix, name string) string { return cut(prefix+"."+name, maxLocationBytes) }

// cut shortens s to at most n bytes, at a boundary between characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// loneSurrogate reports whether valid JSON has an escaped half of a surrogate pair, which encoding/json would silently replace:
// two different device keys would become one.
func loneSurrogate(data []byte) bool {
	half := func(i int) (uint64, bool) { // the code unit of an escape \uXXXX at i
		if i+6 > len(data) || data[i] != '\\' || data[i+1] != 'u' {
			return 0, false
		}
		u, err := strconv.ParseUint(string(data[i+2:i+6]), 16, 16)
		return u, err == nil
	}
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		u, ok := half(i)
		switch {
		case !ok:
			i++ // the escaped character
		case u >= 0xdc00 && u <= 0xdfff:
			return true
		case u >= 0xd800 && u <= 0xdbff:
			if low, ok := half(i + 6); !ok || low < 0xdc00 || low > 0xdfff {
				return true
			}
			i += 11
		default:
			i += 5
		}
	}
	return false
}

func badRequest(location, message string) *problem {
	return fieldProblem(http.StatusBadRequest, client.CodeBadRequest, location, message)
}

func unprocessable(location, message string) *problem {
	return fieldProblem(http.StatusUnprocessableEntity, client.CodeInvalid, location, message)
}
