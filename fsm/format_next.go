//go:build nextformat

package fsm

// Format is that of a release to come: tests build it to run fleets of mixed formats. In it, settings are as if
// they had gained a field.
const Format = 2

func newerThan1(op Op) (uint32, bool) {
	_, settings := op.(PutSettings)
	return 2, settings
}
