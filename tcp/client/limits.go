package client

import (
	"fmt"
	"time"

	"kvferry/core"
)

// limit is how long a wait may take while nothing moves, and the setting that says so.
type limit struct {
	after   time.Duration
	setting string
}

func (l limit) String() string { return fmt.Sprintf("%v (%s)", l.after, l.setting) }

// progressLimit is for a transfer whose bytes are to move.
func progressLimit(c *core.Config) limit {
	return limit{c.ProgressTimeout, "MC_TCP_PROGRESS_TIMEOUT_SEC"}
}

// answerLimit is for a peer that has all of a request, and owes an answer. A transfer that waits for one makes no progress
// either, so the shorter limit counts, as with Mooncake.
func answerLimit(c *core.Config) limit {
	if c.StatusTimeout < c.ProgressTimeout {
		return limit{c.StatusTimeout, "MC_TCP_STATUS_TIMEOUT_SEC"}
	}
	return progressLimit(c)
}
