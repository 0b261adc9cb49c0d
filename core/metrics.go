package core

import (
	"time"

	"kvferry/core/metrics"

	"go.uber.org/zap"
)

// logThroughput logs a line after every MC_TE_METRIC_INTERVAL_SECONDS in which bytes have moved, or requests have ended, if
// MC_TE_METRIC is on. The line is a warning, since that is the default level of the log.
func (e *Engine) logThroughput() {
	ticker := time.NewTicker(e.config.MetricsInterval)
	defer ticker.Stop()
	var last moment // all zero, as when the engine was made
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-ticker.C:
		}
		now := e.moment()
		if now.differs(&last) {
			e.log.Warn("throughput", now.fields(&last, e.Name(), e.config.MetricsInterval)...)
		}
		last = now
	}
}

// moment is what the lines are made of.
type moment struct {
	metrics.Totals
	out, in      uint64 // bytes, as either side
	targetErrors uint64
}

func (e *Engine) moment() moment {
	m := moment{Totals: e.metrics.Totals()}
	for _, link := range e.Links() {
		m.out += link.BytesOut
		m.in += link.BytesIn
		if link.Direction == AsTarget {
			m.targetErrors += link.Errors
		}
	}
	return m
}

// differs reports whether there is something to tell.
func (m *moment) differs(last *moment) bool {
	now, then := m.Duration(), last.Duration()
	return m.out != last.out || m.in != last.in || m.Failed() != last.Failed() || m.targetErrors != last.targetErrors ||
		now.Count() != then.Count()
}

// fields describe the time between two moments. errors and target_errors are those since the engine was made.
func (m *moment) fields(last *moment, engine string, interval time.Duration) []zap.Field {
	batches := m.Duration().Since(last.Duration())
	return []zap.Field{
		zap.String("engine", engine),
		zap.Float64("out_MB_per_s", float64(m.out-last.out)/interval.Seconds()/1e6),
		zap.Float64("in_MB_per_s", float64(m.in-last.in)/interval.Seconds()/1e6),
		zap.Uint64("batches", batches.Count()),
		zap.Float64("p50_ms", batches.Quantile(.5).Seconds()*1e3),
		zap.Float64("p99_ms", batches.Quantile(.99).Seconds()*1e3),
		zap.Uint64("errors", m.Failed()),
		zap.Uint64("target_errors", m.targetErrors),
	}
}
