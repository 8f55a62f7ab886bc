package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// maxDepth is how deep a document may be nested; the deepest of the API has five levels.
const maxDepth = 32

// unmarshalJSON is json.Unmarshal for what comes from outside. It refuses what is nested deeper than maxDepth, and an
// object that has a name twice: a proxy that checks requests may look at the other one.
func unmarshalJSON(data []byte, v any) error {
	if err := checkJSON(data); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// level is an object or array in which a scan is.
type level struct {
	object bool
	name   bool     // of an object: what comes next is a name
	few    [][]byte // names, while they are few; a part of the document
	many   map[string]struct{}
}

// checkJSON scans a document. What is no JSON at all is left to the decoder.
func checkJSON(data []byte) error {
	var room [maxDepth]level
	in := room[:0]
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{', '[':
			if len(in) == maxDepth {
				return fmt.Errorf("it is nested deeper than %d levels: exceeded max depth", maxDepth)
			}
			object := data[i] == '{'
			in = append(in, level{object: object, name: object})
		case '}', ']':
			if len(in) == 0 {
				return nil
			}
			in = in[:len(in)-1]
		case ',':
			if len(in) > 0 {
				in[len(in)-1].name = in[len(in)-1].object
			}
		case '"':
			end := stringEnd(data, i)
			if end < 0 {
				return nil
			}
			if len(in) > 0 && in[len(in)-1].name {
				if err := in[len(in)-1].take(data[i:end]); err != nil {
					return err
				}
			}
			i = end - 1
		}
	}
	return nil
}

// take notes a name, with its quotes.
func (l *level) take(quoted []byte) error {
	const few = 16
	l.name = false
	name := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(name, '\\') >= 0 {
		var text string
		if json.Unmarshal(quoted, &text) != nil {
			return nil //nolint:nilerr // the decoder says what is wrong with it
		}
		name = []byte(text)
	}
	_, again := l.many[string(name)]
	if again || slices.ContainsFunc(l.few, func(known []byte) bool { return bytes.Equal(known, name) }) {
		return errors.New("an object has a name twice")
	}
	if len(l.few) < few {
		l.few = append(l.few, name)
		return nil
	}
	if l.many == nil {
		l.many = map[string]struct{}{}
	}
	l.many[string(name)] = struct{}{}
	return nil
}

// stringEnd returns the index behind the string that begins at i, -1 if it does not end.
func stringEnd(data []byte, i int) int {
	for i++; i < len(data); i++ {
		switch data[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}
