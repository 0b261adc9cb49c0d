package core

import (
	"fmt"
	"slices"
	"strings"
)

// ChangedSettings lists the settings that the environment sets to other values than the defaults, as NAME=value, in the order of
// the table. Secrets are asterisks. Values that LoadConfig replaces by a default, with a warning, are not listed.
func ChangedSettings(lookup func(variable string) (string, bool)) []string {
	var changed []string
	for _, s := range settings {
		if s.load(new(Config), lookup) != nil {
			continue
		}
		for _, v := range s.variables {
			name, text := v.find(lookup)
			if text == v.unset {
				continue
			}
			if s.kind.secret {
				text = Secret(text).String()
			}
			changed = append(changed, fmt.Sprintf("%s=%.200s", name, text))
		}
	}
	return changed
}

const (
	ownPrefix      = "KVFERRY_"
	mooncakePrefix = "MC_"
)

// elsewhere are the variables with kvferry's prefix that engines do not read. KVFERRY_LIBRARY is read by the Python package, the
// others by the project's tests and benchmarks. Names that start with one of elsewherePrefixes are read by the simulated devices
// and by tests, or are set by Kubernetes in every pod when there is a service called kvferry.
var (
	elsewhere = []string{
		"KVFERRY_LIBRARY",
		"KVFERRY_FUZZ_INPUTS", "KVFERRY_MOONCAKE_CUDA", "KVFERRY_NIXL", "KVFERRY_PEERS_DIR", "KVFERRY_PEERS_LIBRARIES",
		"KVFERRY_REQUIRE_ALL",
	}
	elsewherePrefixes = []string{"KVFERRY_SIM_", "KVFERRY_TEST", "KVFERRY_OWNERSHIP_", "KVFERRY_SERVICE_", "KVFERRY_PORT"}
)

// UnknownVariable says in a sentence that a variable of the environment looks like a setting of kvferry and is not one. It
// returns "" for a setting, and for variables of other programs.
func UnknownVariable(name string) string {
	if !strings.HasPrefix(name, ownPrefix) || slices.Contains(elsewhere, name) {
		return ""
	}
	for _, prefix := range elsewherePrefixes {
		if strings.HasPrefix(name, prefix) {
			return ""
		}
	}
	if isKnown(name) {
		return ""
	}
	text := fmt.Sprintf("%.100s is no setting of kvferry and has no effect", name)
	if nearest := nearestTo(name); nearest != "" {
		text += ": did you mean " + nearest + "?"
	}
	return text
}

// isKnown reports whether a variable is a setting, in its present or in its older spelling.
func isKnown(name string) bool { return IsSetting(name) || slices.Contains(knownVariables(), name) }

// IsSetting reports whether a variable is a setting of engines, by its present name or an older one.
func IsSetting(name string) bool {
	return slices.ContainsFunc(settings, func(s setting) bool {
		return slices.ContainsFunc(s.variables, func(v variable) bool { return v.name == name || v.older != "" && v.older == name })
	})
}

// knownVariables are the settings in their present spelling.
func knownVariables() []string {
	known := []string{"KVFERRY_LIBRARY"}
	for _, s := range settings {
		for _, v := range s.variables {
			known = append(known, v.name)
		}
	}
	return known
}

// nearestTo returns the setting with the fewest edits between its name and another one, without their prefixes; "" if that takes
// edits of more than a third of the letters.
func nearestTo(name string) string {
	name = withoutPrefix(name)
	nearest, fewest := "", len(name)/3+1
	for _, k := range knownVariables() {
		if edits := editDistance(name, withoutPrefix(k)); edits < fewest {
			nearest, fewest = k, edits
		}
	}
	return nearest
}

func withoutPrefix(name string) string {
	return strings.TrimPrefix(strings.TrimPrefix(name, ownPrefix), mooncakePrefix)
}

// editDistance counts the bytes to insert, remove or replace to turn a into b, by the algorithm of Wagner and Fischer.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
