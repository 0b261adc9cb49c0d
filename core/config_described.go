package core

import (
	"maps"
	"slices"
	"strings"
)

// Described is what the environment says to an engine that would be made now.
type Described struct {
	Settings []DescribedSetting `json:"settings"` // all, in the order of the table
	Unknown  []UnknownSetting   `json:"unknown"`  // variables with a prefix of settings that are none, in the order of their names
}

// DescribedSetting is a variable of the table.
type DescribedSetting struct {
	Name    string `json:"name"`    // as it is spelled in the environment
	Value   string `json:"value"`   // in effect; asterisks for a secret
	Default string `json:"default"` //
	Source  string `json:"source"`  // FromEnvironment or FromDefault
	Problem string `json:"problem"` // why the value in the environment is not in effect; "" for none
}

// Where a value comes from.
const (
	FromEnvironment = "environment"
	FromDefault     = "default"
)

// UnknownSetting is a variable that looks like a setting.
type UnknownSetting struct {
	Name    string `json:"name"`
	Nearest string `json:"nearest"` // the setting that was probably meant; "" for none
	Own     bool   `json:"own"`     // it has kvferry's prefix, so that it has no effect. One with Mooncake's may be Mooncake's
}

// Describe describes variables of an environment.
func Describe(environment map[string]string) Described {
	d := Described{Settings: []DescribedSetting{}, Unknown: []UnknownSetting{}}
	lookup := func(variable string) (string, bool) {
		value, ok := environment[variable]
		return value, ok
	}
	for _, s := range settings {
		d.Settings = append(d.Settings, s.describe(lookup)...)
	}
	for _, name := range slices.Sorted(maps.Keys(environment)) {
		switch {
		case UnknownVariable(name) != "":
			d.Unknown = append(d.Unknown, UnknownSetting{name, nearestTo(name), true})
		case strings.HasPrefix(name, mooncakePrefix) && !isKnown(name):
			d.Unknown = append(d.Unknown, UnknownSetting{name, nearestTo(name), false})
		}
	}
	return d
}

// describe describes the variables of a setting.
func (s *setting) describe(lookup func(string) (string, bool)) (all []DescribedSetting) {
	problem := ""
	if w := s.load(new(Config), lookup); w != nil {
		problem = w.Reason
	}
	for _, v := range s.variables {
		name, value := v.find(lookup)
		described := DescribedSetting{Name: name, Value: value, Default: v.unset, Source: FromEnvironment, Problem: problem}
		if _, set := lookup(name); !set {
			described.Source, described.Problem = FromDefault, ""
		}
		if problem != "" {
			described.Value = v.unset
		}
		if s.kind.secret && described.Value != v.unset {
			described.Value = Secret(value).String()
		}
		all = append(all, described)
	}
	return all
}
