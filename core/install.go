package core

import (
	"errors"
	"slices"
)

type installedTransport struct {
	name string
	Transport
}

// Install makes a transport and returns it, or returns the one that is installed under that name.
func (e *Engine) Install(name string, open func(*Engine) (Transport, error)) (Transport, error) {
	e.installing.Lock()
	defer e.installing.Unlock()
	if e.ctx.Err() != nil {
		return nil, closedError()
	}
	for _, t := range e.installed() {
		if t.name == name {
			return t.Transport, nil
		}
	}
	t, err := open(e)
	if err != nil {
		return nil, err
	}
	before := e.installed()
	all := append(slices.Clone(before), installedTransport{name, t})
	e.transports.Store(&all)
	if err := e.publish(); err != nil {
		e.transports.Store(&before)
		return nil, errors.Join(err, t.Close())
	}
	if len(before) == 0 {
		e.logStart()
	}
	return t, nil
}

// installed are the transports. The last one is used.
func (e *Engine) installed() []installedTransport { return *e.transports.Load() }

// RequireRuntime opens the library of one kind of device, "npu", or says why that is not possible. Registering memory does this,
// too, where it is needed.
func (e *Engine) RequireRuntime(name string) error {
	if e.ctx.Err() != nil {
		return closedError()
	}
	return e.devices.require(name)
}

// Links describes the peers.
func (e *Engine) Links() []Link {
	var links []Link
	for _, t := range e.installed() {
		links = append(links, t.Links()...)
	}
	return links
}
