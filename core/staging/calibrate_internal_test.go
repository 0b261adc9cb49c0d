package staging

import (
	"testing"

	"kvferry/core/device"

	"github.com/stretchr/testify/require"
)

// Where a length was not measured, moves are planned as without a table.
func TestALengthThatWasNotMeasuredKeepsTheDefault(t *testing.T) {
	traits := device.Traits{Alignment: testAlignment, Ways: 1<<device.WayCount - 1}
	for _, traits.Default = range []device.Way{device.Single, device.Batch, device.Gather, device.Kernel} {
		for _, length := range []uint64{100, testBelow - 1, testBelow, 2000} {
			for _, offset := range []uintptr{0, 7} {
				moves := scattered(offset, length, length, length)
				for dir := range In + 1 {
					var plans []string
					for _, table := range []*device.Table{nil, new(device.Table)} {
						p := newPlanner(dir, traits, Options{GatherBelow: testBelow, BlockSize: testCapacity})
						p.gather, p.ways.table = gatherAt, table
						plans = append(plans, show(p.plan(moves)))
					}
					require.Equal(t, plans[0], plans[1], "%v, %v of %d bytes", traits.Default, dir, length)
				}
			}
		}
	}
}
