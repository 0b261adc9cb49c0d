package core

import (
	"time"

	"go.uber.org/zap"
)

// logThroughput logs a line after every MC_TE_METRIC_INTERVAL_SECONDS in which bytes have moved, if MC_TE_METRIC is on. The line is
// a warning, since that is the default level of the log.
func (e *Engine) logThroughput() {
	ticker := time.NewTicker(e.config.MetricsInterval)
	defer ticker.Stop()
	out, in, _ := e.totals()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-ticker.C:
		}
		nextOut, nextIn, errors := e.totals()
		if nextOut != out || nextIn != in {
			seconds := e.config.MetricsInterval.Seconds()
			e.log.Warn("throughput",
				zap.Float64("out_MB_per_s", float64(nextOut-out)/seconds/1e6),
				zap.Float64("in_MB_per_s", float64(nextIn-in)/seconds/1e6),
				zap.Uint64("errors", errors))
		}
		out, in = nextOut, nextIn
	}
}

// totals sums up what all peers have moved, as either side, since the engine was made.
func (e *Engine) totals() (out, in, errors uint64) {
	for _, link := range e.Links() {
		out += link.BytesOut
		in += link.BytesIn
		errors += link.Errors
	}
	return out, in, errors
}
