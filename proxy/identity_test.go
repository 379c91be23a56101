package proxy

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"turnout/fsm"
	"turnout/proxy/mqtt"
)

func mustIdentity(t testing.TB, template string) *Identity {
	t.Helper()
	id, err := ParseIdentity(template)
	if err != nil {
		t.Fatalf("%q: %v", template, err)
	}
	return id
}

func TestParseIdentity(t *testing.T) {
	for _, good := range []string{
		"{client_id}", "{username}", "{password_hmac}", "dev-{client_id}", "{username}/{client_id}", "a{client_id}b{username}c{password_hmac}d", "{username}::{client_id}!",
	} {
		if id := mustIdentity(t, good); id.String() != good {
			t.Errorf("%q became %q", good, id)
		}
	}
	for _, bad := range []string{
		"", "fixed", "{client_id", "{clientid}", "{}", "{client_id}{username}", "{client_id}/{client_id}", "{client_id}7{username}", "{client_id}A{username}",
		"%{client_id}", "é{client_id}", "{client_id}\n", "{client_id}}", strings.Repeat("x", 256) + "{client_id}",
	} {
		if _, err := ParseIdentity(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// triple is what identity looks at.
type triple struct{ id, user, password *string }

func (x triple) connect() *mqtt.Connect {
	c := &mqtt.Connect{}
	if x.id != nil {
		c.ClientID = []byte(*x.id)
	}
	if x.user != nil {
		c.HasUsername, c.Username = true, []byte(*x.user)
	}
	if x.password != nil {
		c.HasPassword, c.Password = true, []byte(*x.password)
	}
	return c
}

func TestIdentityKey(t *testing.T) {
	s := func(v string) *string { return &v }
	const mac = "a1f97feec5e83e8f4db7d7a1cd1a0d88" // stands for the digits; only the length is compared
	for _, tc := range []struct {
		template string
		in       triple
		want     string
	}{
		{"{client_id}", triple{id: s("m-0417")}, "m-0417"},
		{"{client_id}", triple{id: s("a/b%2F")}, "a/b%2F"},
		{"{client_id}", triple{}, ""},
		{"x-{client_id}", triple{id: s("1")}, "x-1"},
		{"x-{client_id}", triple{id: s("")}, ""},
		{"{username}", triple{id: s("1")}, ""},
		{"u-{username}", triple{id: s("1")}, ""},
		{"u-{username}", triple{user: s("")}, "u-"},
		{"{username}/{client_id}", triple{id: s("c"), user: s("u")}, "u/c"},
		{"{username}/{client_id}", triple{id: s("c")}, "/c"},
		{"{username}/{client_id}", triple{id: s("c"), user: s("")}, "%/c"},
		{"{username}/{client_id}", triple{user: s("u")}, ""},
		{"{username}/{client_id}", triple{id: s("b/c"), user: s("a")}, "a/b%2Fc"},
		{"{username}/{client_id}", triple{id: s("c"), user: s("a%2Fb")}, "a%252Fb/c"},
		{"{username}/{password_hmac}", triple{}, ""},
		{"{username}/{password_hmac}", triple{password: s("")}, "/" + mac},
		{"{username}/{password_hmac}", triple{user: s("u"), password: s("p")}, "u/" + mac},
	} {
		got, err := mustIdentity(t, tc.template).Key(nil, tc.in.connect(), make([]byte, 32))
		if err != nil {
			t.Errorf("%s: %v", tc.template, err)
		}
		if i := strings.Index(tc.want, mac); i >= 0 {
			if len(got) != len(tc.want) || string(got[:i]) != tc.want[:i] {
				t.Errorf("%s: got %q", tc.template, got)
			}
		} else if string(got) != tc.want {
			t.Errorf("%s: got %q, want %q", tc.template, got, tc.want)
		}
	}
}

func TestIdentityPasswordDependsOnSecret(t *testing.T) {
	id := mustIdentity(t, "{password_hmac}")
	c := &mqtt.Connect{HasPassword: true, Password: []byte("k9!x")}
	keys := map[string]bool{}
	for _, secret := range []string{"0123456789abcdef", "fedcba9876543210", "0123456789abcdef"} {
		k, err := id.Key(nil, c, []byte(secret))
		if err != nil || len(k) != passwordDigits || bytes.Contains(k, c.Password) {
			t.Fatalf("key %q, %v", k, err)
		}
		keys[string(k)] = true
	}
	if len(keys) != 2 {
		t.Errorf("%d keys of two secrets", len(keys))
	}
}

func TestIdentityKeyIsBounded(t *testing.T) {
	for _, tc := range []struct {
		template string
		id       int
		ok       bool
	}{
		{"{client_id}", 256, true}, {"{client_id}", 257, false}, {"{client_id}", 65535, false}, {"x-{client_id}", 254, true}, {"x-{client_id}", 255, false},
		{"{username}/{client_id}", 255, true}, {"{username}/{client_id}", 256, false},
	} {
		k, err := mustIdentity(t, tc.template).Key(nil, &mqtt.Connect{ClientID: bytes.Repeat([]byte("a"), tc.id)}, nil)
		if ok := err == nil; ok != tc.ok || !ok && (!errors.Is(err, ErrKeyTooLong) || len(k) > 0) {
			t.Errorf("%s with %d bytes: %d bytes, %v", tc.template, tc.id, len(k), err)
		}
	}
}

func TestIdentityKeyDoesNotAllocate(t *testing.T) {
	for _, template := range []string{"{client_id}", "{username}/{client_id}", "{username}/{client_id}:{password_hmac}"} {
		id := mustIdentity(t, template)
		c := &mqtt.Connect{ClientID: []byte("m-0417"), HasUsername: true, Username: []byte("plant/7"), HasPassword: true, Password: []byte("k9!x")}
		dst, secret := make([]byte, 0, 2*fsm.MaxKeyBytes), make([]byte, 32)
		if raceEnabled {
			continue // the pool drops its content at random under the race detector
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = id.Key(dst, c, secret) }); n > 0 {
			t.Errorf("%s: %v allocations", template, n)
		}
	}
}

var fuzzTemplates = []string{"{client_id}", "x{username}", "{username}/{client_id}", "{client_id}:{username}", "ab{username}-25-{client_id}F", "{username}/{client_id}|{password_hmac}"}

// checkPair holds two triples against each other under every template.
func checkPair(t *testing.T, a, b triple) {
	t.Helper()
	secret := []byte("0123456789abcdef")
	for _, template := range fuzzTemplates {
		id := mustIdentity(t, template)
		ka, errA := id.Key(nil, a.connect(), secret)
		kb, errB := id.Key(nil, b.connect(), secret)
		if errA != nil || errB != nil || len(ka) == 0 || len(kb) == 0 {
			continue
		}
		same := true
		for _, s := range id.slots {
			va, oka := id.value(a.connect(), s.part)
			vb, okb := id.value(b.connect(), s.part)
			same = same && oka == okb && bytes.Equal(va, vb)
		}
		if same != bytes.Equal(ka, kb) {
			t.Fatalf("%s: keys %q and %q, same values: %v", template, ka, kb, same)
		}
		p, ok := id.Parts(fsm.DeviceKey(ka))
		c := a.connect()
		if !ok || p.HasClientID && p.ClientID != string(c.ClientID) || p.HasUsername && p.Username != string(c.Username) {
			t.Fatalf("%s: key %q comes apart as %+v %v", template, ka, p, ok)
		}
		for _, s := range id.slots {
			if s.part == partUsername && len(id.slots) > 1 && p.HasUsername != c.HasUsername {
				t.Fatalf("%s: key %q: user name present %v, was %v", template, ka, p.HasUsername, c.HasUsername)
			}
		}
	}
}

func TestIdentityIsInjective(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	// Few letters, many of them with a meaning somewhere: collisions, were there any, would be frequent.
	word := func() *string {
		if r.IntN(4) == 0 {
			return nil
		}
		b := make([]byte, r.IntN(4))
		for i := range b {
			b[i] = "%/:-25Fab|x"[r.IntN(11)]
		}
		s := string(b)
		return &s
	}
	for range 30_000 {
		checkPair(t, triple{word(), word(), word()}, triple{word(), word(), word()})
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add("a", "b", "c", "a", "b/", "c", uint8(63))
	f.Add("%", "", "", "", "%", "2F", uint8(0x15))
	f.Fuzz(func(t *testing.T, i1, u1, p1, i2, u2, p2 string, present uint8) {
		pick := func(s *string, bit int) *string {
			if present&(1<<bit) == 0 {
				return nil
			}
			return s
		}
		checkPair(t, triple{pick(&i1, 0), pick(&u1, 1), pick(&p1, 2)}, triple{pick(&i2, 3), pick(&u2, 4), pick(&p2, 5)})
	})
}

func FuzzParts(f *testing.F) {
	f.Add("a/b%2F")
	f.Add("%/x")
	f.Fuzz(func(t *testing.T, key string) {
		for _, template := range fuzzTemplates[:5] {
			id := mustIdentity(t, template)
			p, ok := id.Parts(fsm.DeviceKey(key))
			if !ok {
				continue
			}
			c := triple{}
			if p.HasClientID {
				c.id = &p.ClientID
			}
			if p.HasUsername {
				c.user = &p.Username
			}
			if back, err := id.Key(nil, c.connect(), nil); err == nil && len(back) > 0 && string(back) != key {
				t.Fatalf("%s: %q → %+v → %q", template, key, p, back)
			}
		}
	})
}
