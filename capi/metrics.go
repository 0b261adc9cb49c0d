package main

import (
	"kvferry/core"
	"kvferry/core/metrics/exporter"

	"go.uber.org/zap"
)

// showMetrics shows an engine's metrics to this user's commands, and where the configuration asks for it, until hide is called. An
// engine whose metrics cannot be shown works without: another process may have the port.
func showMetrics(e *core.Engine) (hide func()) {
	hidePrivate := exporter.AttachPrivately(e.Config().SocketDir, e.Stats, e.Log())
	address := e.Config().MetricsListen
	if address == "" {
		return hidePrivate
	}
	hidePublic, err := exporter.Attach(address, e.Stats, e.Log())
	if err != nil {
		e.Log().Warn("metrics are not served", zap.String("engine", e.Name()), zap.String("KVFERRY_METRICS_LISTEN", address), zap.Error(err))
		return hidePrivate
	}
	return func() {
		hidePublic()
		hidePrivate()
	}
}
