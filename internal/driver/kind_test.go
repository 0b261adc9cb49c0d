package driver_test

import (
	"fmt"
	"testing"

	"kvferry/internal/driver"

	"github.com/stretchr/testify/require"
)

func TestAnErrorWithoutAMessageIsWhole(t *testing.T) {
	err := &driver.Error{Call: "aclrtFree(0x40)", Code: 507899}
	require.EqualError(t, err, "aclrtFree(0x40) failed with 507899")
}

func TestAnErrorIsFoundByItsCodeInOthers(t *testing.T) {
	err := fmt.Errorf("cuda:0: %w", &driver.Error{Call: "cuMemFree(0x40)", Code: 700, Message: "CUDA_ERROR_ILLEGAL_ADDRESS"})
	require.True(t, driver.FailedWith(err, 700))
	require.False(t, driver.FailedWith(err, 719))
	require.False(t, driver.FailedWith(nil, 0))
}
