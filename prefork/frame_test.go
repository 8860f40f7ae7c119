package prefork

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/seed-235859eb/usher/internal/fleet"
)

func line(t testing.TB, f frame) []byte {
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// TestSplitter cuts a stream of frames at every place.
func TestSplitter(t *testing.T) {
	want := []frame{
		{Type: frameStop, Level: fleet.LevelQuick, Final: true},
		{Type: frameOrphans, Seats: []int{1, 3}, Fresh: []string{"3 tcp:[::]:8080"}},
		{Type: frameBeat, Ready: true, Beat: &fleet.Beat{Progress: true, Requests: 1 << 40}},
		{Type: "from the future"},
	}
	var stream []byte
	for _, f := range want {
		stream = append(stream, line(t, f)...)
	}
	for cut := range stream {
		var s splitter
		first, err := s.feed(stream[:cut])
		if err != nil {
			t.Fatal(err)
		}
		second, err := s.feed(stream[cut:])
		if err != nil {
			t.Fatal(err)
		}
		if got := append(first, second...); !reflect.DeepEqual(got, want) {
			t.Fatalf("cut at %d: %+v", cut, got)
		}
	}
}

func TestSplitterBounds(t *testing.T) {
	var s splitter
	if _, err := s.feed([]byte("nonsense\n")); err == nil {
		t.Error("nonsense is a frame")
	}
	s = splitter{}
	var err error
	for range maxFrame/1000 + 2 {
		if _, err = s.feed(bytes.Repeat([]byte("x"), 1000)); err != nil {
			break
		}
	}
	if err == nil {
		t.Error("an endless line is kept")
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add(line(f, frame{Type: frameStop, Level: 1}), 3)
	f.Add([]byte("{}\n{\"t\":\"orphans\",\"fresh\":[\"1 a\",\"x\"]}\n{"), 5)
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		if cut < 0 || cut > len(stream) {
			return
		}
		var s splitter
		frames, err := s.feed(stream[:cut])
		if err == nil {
			var more []frame
			more, err = s.feed(stream[cut:])
			frames = append(frames, more...)
		}
		if n := bytes.Count(stream, []byte{'\n'}); len(frames) > n || err == nil && len(frames) < n {
			t.Errorf("%d lines made %d frames, error %v", n, len(frames), err)
		}
		for _, fr := range frames {
			for _, fresh := range fr.Fresh {
				if seat, _, err := freshOf(fresh); err == nil && seat < 0 {
					t.Errorf("%q is seat %d", fresh, seat)
				}
			}
		}
	})
}

func TestFreshOf(t *testing.T) {
	if seat, name, err := freshOf("12 tcp:[::1]:80 x"); seat != 12 || name != "tcp:[::1]:80 x" || err != nil {
		t.Errorf("%d %q %v", seat, name, err)
	}
	for _, bad := range []string{"", "12", "-1 x", "x 1", " "} {
		if _, _, err := freshOf(bad); err == nil {
			t.Errorf("%q has no error", bad)
		}
	}
}

func FuzzSetup(f *testing.F) {
	f.Add(`{"seat":0,"generation":1,"control":3,"stderr":4,"sockets":[{"name":"a","fd":5}]}`)
	f.Add(`{"seat":-1}`)
	f.Fuzz(func(t *testing.T, value string) {
		s, err := parseSetup(value)
		if err == nil && (s.Seat < 0 || s.Generation < 1 || len(s.Sockets) == 0 || s.Control < 3 || s.Stderr < 3 || s.Control == s.Stderr) {
			t.Errorf("accepted %+v", s)
		}
		if err != nil && !strings.Contains(err.Error(), workerEnv) {
			t.Errorf("the error does not name the variable: %v", err)
		}
	})
}
