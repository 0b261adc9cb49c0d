package core

import (
	"time"

	"kvferry/core/address"
	"kvferry/core/metadata"
)

// Start is New with a store of the test's.
func Start(o Options, store metadata.Store) (*Engine, error) {
	name, err := address.Parse(o.Name, o.Config.HandshakePort)
	if err != nil {
		return nil, err
	}
	return start(o, name, store)
}

// SetGrace sets how long memory that is unregistered is waited for.
func (e *Engine) SetGrace(d time.Duration) { e.grace = d }
