package core

import (
	"net"
	"strconv"

	"go.uber.org/zap"
)

// startInfo is what only the line of a start says.
type startInfo struct {
	version  string
	metadata string   // the store, without secrets
	changed  []string // settings, likewise
}

// logStart says, once its first transport is there, what the engine is and where peers find it.
func (e *Engine) logStart() {
	d := e.Descriptor()
	listening := e.ListenHost()
	if listening == "" {
		listening = "every address"
	}
	e.log.Info("an engine has started",
		zap.String("version", e.started.version),
		zap.String("name", e.name),
		zap.String("handshake", e.Address()),
		zap.String("data", net.JoinHostPort(d.DataHost, strconv.Itoa(d.DataPort))),
		zap.String("listening", listening),
		zap.String("metadata", e.started.metadata),
		zap.Strings("settings", e.started.changed))
}
