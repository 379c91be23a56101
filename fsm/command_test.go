package fsm

import (
	"encoding/binary"
	"errors"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResultTravels(t *testing.T) {
	for _, r := range []Result{
		{Index: 1<<64 - 1, Version: 7, Item: -1, Bind: Outcome{Created: 1, Bound: 2, Replaced: 3, Kept: 4, Stale: 5}},
		{Index: 9, Code: CodeInUse, Field: "name", Item: 4095, Message: "3 devices"},
	} {
		b, err := MarshalResult(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := UnmarshalResult(b)
		if err != nil || got != r {
			t.Fatalf("%+v came back as %+v, %v", r, got, err)
		}
		for n := range b {
			if _, err := UnmarshalResult(b[:n]); err == nil {
				t.Fatalf("the first %d of %d bytes are no result", n, len(b))
			}
		}
	}
}

func TestEncodeIsBounded(t *testing.T) {
	c := &Bind{}
	for i := range MaxBatch {
		key := []byte(strings.Repeat("k", MaxKeyBytes))
		binary.BigEndian.PutUint16(key, uint16(i)&0x7f7f)
		c.Bindings = append(c.Bindings, Binding{Key: DeviceKey(key), Cluster: 1, Node: 1})
	}
	if _, err := Encode(c); !errors.Is(err, ErrInvalid) {
		t.Fatalf("encoded more than %d bytes: %v", MaxCommandBytes, err)
	}
	c.Bindings = c.Bindings[:MaxBatch/4]
	if b, err := Encode(c); err != nil || len(b) > MaxCommandBytes {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	entry := func(version byte, kind Kind, body ...byte) []byte {
		return append(binary.BigEndian.AppendUint16([]byte{version}, uint16(kind)), body...)
	}
	for _, tc := range []struct {
		name  string
		entry []byte
		code  Code
	}{
		{"nothing", nil, CodeInvalid},
		{"half an envelope", []byte{1, 0}, CodeInvalid},
		{"envelope version 0", entry(0, KindBind, 0xa0), CodeUnsupported},
		{"later envelope", entry(2, KindBind, 0xa0), CodeUnsupported},
		{"kind 0", entry(1, 0, 0xa0), CodeUnsupported},
		{"later kind", entry(1, KindNoteDiscovery+1, 0xa0), CodeUnsupported},
		{"larger than any", entry(1, KindBind, make([]byte, MaxCommandBytes)...), CodeUnsupported},
		{"no body", entry(1, KindBind), CodeInvalid},
		{"two bodies", entry(1, KindBind, 0xa0, 0xa0), CodeInvalid},
		{"body of another shape", entry(1, KindBind, 0x01), CodeInvalid},
		{"key twice (RFC 8949 5.6)", entry(1, KindSetNode, 0xa2, 0x01, 0x61, 'a', 0x01, 0x61, 'b'), CodeInvalid},
		{"text not UTF-8", entry(1, KindSetNode, 0xa1, 0x01, 0x61, 0xff), CodeInvalid},
		{"a float where a number stands", entry(1, KindRemoveCluster, 0xa1, 0x02, 0xfb, 0x40, 0, 0, 0, 0, 0, 0, 0), CodeInvalid},
		{"a number too large", entry(1, KindBind, 0xa1, 0x01, 0x81, 0x83, 0x61, 'k', 0x1b, 1, 0, 0, 0, 0, 0, 0, 0, 0x01), CodeInvalid},
		{"a negative id", entry(1, KindBind, 0xa1, 0x01, 0x81, 0x83, 0x61, 'k', 0x20, 0x01), CodeInvalid},
		{"a binding of two", entry(1, KindBind, 0xa1, 0x01, 0x81, 0x82, 0x61, 'k', 0x01), CodeInvalid},
		{"a binding of four", entry(1, KindBind, 0xa1, 0x01, 0x81, 0x84, 0x61, 'k', 0x01, 0x01, 0x01), CodeInvalid},
		{"bignum", entry(1, KindRemoveCluster, 0xa1, 0x02, 0xc2, 0x41, 0x01), CodeInvalid},
		{"indefinite length", entry(1, KindBind, 0xbf, 0xff), CodeInvalid},
		{"array of 2^64-1", entry(1, KindBind, 0xa1, 0x01, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), CodeInvalid},
		{"array of 2^31", entry(1, KindBind, 0xa1, 0x01, 0x9a, 0x80, 0, 0, 0), CodeInvalid},
		{"array of 65 535 that is not there", entry(1, KindBind, 0xa1, 0x01, 0x99, 0xff, 0xff), CodeInvalid},
		{"map of 2^63", entry(1, KindBind, 0xbb, 0x80, 0, 0, 0, 0, 0, 0, 0), CodeInvalid},
		{"text of 2^62", entry(1, KindSetNode, 0xa1, 0x01, 0x7b, 0x40, 0, 0, 0, 0, 0, 0, 0), CodeInvalid},
		{"nested deeply", entry(1, KindBind, append(append([]byte{0xa1, 0x18, 0x63}, make40(0x81)...), 0xf6)...), CodeInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c, err := Decode(tc.entry)
			runtime.ReadMemStats(&after)
			if c != nil || CodeOf(err) != tc.code {
				t.Fatalf("decoded to %T, %v; want %s", c, err, tc.code)
			}
			if spent := after.TotalAlloc - before.TotalAlloc; spent > 1<<20 {
				t.Fatalf("refusing %d bytes took %d", len(tc.entry), spent)
			}
		})
	}
}

func make40(b byte) []byte { return []byte(strings.Repeat(string([]byte{b}), 40)) }

func TestLaterFieldsAreIgnored(t *testing.T) {
	c, err := Decode([]byte{1, 0, byte(KindRemoveCluster), 0xa2, 0x01, 0x61, 'a', 0x18, 0x63, 0x61, 'x'})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Command(&RemoveCluster{Name: "a"}), c); d != "" {
		t.Fatal(d)
	}
}

// TestNothingUncertainIsReplicated walks over everything that is encoded: a float, an interface or a function would have more
// than one encoding or none.
func TestNothingUncertainIsReplicated(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		if seen[typ] {
			return
		}
		seen[typ] = true
		switch typ.Kind() {
		case reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128, reflect.Interface, reflect.Func, reflect.Chan, reflect.Uintptr:
			t.Errorf("%s is a %s", path, typ)
		case reflect.Pointer, reflect.Slice, reflect.Array:
			walk(path, typ.Elem())
		case reflect.Map:
			walk(path, typ.Key())
			walk(path, typ.Elem())
		case reflect.Struct:
			for i := range typ.NumField() {
				walk(path+"."+typ.Field(i).Name, typ.Field(i).Type)
			}
		}
	}
	for k := Kind(1); ; k++ {
		c := newCommand(k)
		if c == nil {
			break
		}
		walk(reflect.TypeOf(c).Elem().Name(), reflect.TypeOf(c))
	}
	for _, v := range []any{topologyHead{}, snapshotHeader{}, Cluster{}, row{}, Result{}} {
		walk(reflect.TypeOf(v).Name(), reflect.TypeOf(v))
	}
}

func TestApplyReadsNothingLocal(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	banned := map[string]string{
		"time": "clock", "math/rand": "randomness", "math/rand/v2": "randomness", "crypto/rand": "randomness", "os": "environment and disk",
		"hash/maphash": "its seed differs from process to process",
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			if why, ok := banned[strings.Trim(spec.Path.Value, `"`)]; ok {
				t.Errorf("%s imports %s: Apply must give the same everywhere (%s)", name, spec.Path.Value, why)
			}
		}
	}
}
