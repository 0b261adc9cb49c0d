package core

import (
	"net"
	"strconv"

	"go.uber.org/zap"
)

// startInfo is what the log line about the start says, and nothing else needs.
type startInfo struct {
	version  string
	metadata string   // the store, without secrets
	changed  []string // settings that differ from their defaults, without secrets
}

// logStart logs the engine's name, addresses and settings, when its first transport is installed.
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
		zap.Stringer("security", e.policy),
		zap.String("metadata", e.started.metadata),
		zap.Strings("settings", e.started.changed))
}
