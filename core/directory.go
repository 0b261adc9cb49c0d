package core

import (
	"errors"

	"kvferry/core/metadata"
)

// WithDirectory calls f with the directory of a metadata store, which is opened with the settings of an engine. o needs Metadata,
// Config and Log. No engine is made, and nothing is published.
func WithDirectory(o Options, f func(metadata.Directory) error) error {
	self, err := newSelf(o)
	if err != nil {
		return err
	}
	directory, err := metadata.OpenDirectory(o.Metadata, self.storeOptions(o))
	if err != nil {
		return errors.Join(err, self.policy.Close())
	}
	return errors.Join(f(directory), directory.Close(), self.policy.Close())
}
