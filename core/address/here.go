package address

import (
	"context"
	"net"
)

// IsHere reports whether a host, without brackets, is this machine: an address of its interfaces, or a name that stands for
// nothing but such addresses.
func IsHere(ctx context.Context, host string) bool {
	if isLocalhost(host) {
		return true
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	local := localAddresses()
	for _, ip := range found {
		if !local.has(ip) && !ip.IsUnspecified() {
			return false
		}
	}
	return err == nil && len(found) > 0
}
