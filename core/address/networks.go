package address

import (
	"net/netip"
	"slices"
	"strings"

	"kvferry/core/status"
)

// maxEntries is how many addresses or networks one setting may have.
const maxEntries = 256

// Networks are those that may connect. None at all are all networks.
type Networks []netip.Prefix

// ParseNetworks reads networks, as 10.0.0.0/8, and single addresses, joined by commas. No text gives no networks. An error
// carries status.InvalidArgument.
func ParseNetworks(text string) (Networks, error) {
	if text == "" {
		return nil, nil
	}
	var networks Networks
	for entry := range strings.SplitSeq(text, ",") {
		network, err := parseNetwork(strings.TrimSpace(entry))
		if err != nil {
			return nil, err
		}
		networks = append(networks, network)
	}
	if len(networks) > maxEntries {
		return nil, status.Errorf(status.InvalidArgument, "there are %d networks, more than %d", len(networks), maxEntries)
	}
	return networks, nil
}

func parseNetwork(text string) (netip.Prefix, error) {
	address, _, isNetwork := strings.Cut(text, "/")
	if ip, err := netip.ParseAddr(address); err == nil && ip.Zone() != "" {
		return netip.Prefix{}, status.Errorf(status.InvalidArgument, "%.80q has an interface, and a peer's address is compared without one: "+
			"write it without %%%.20s, which allows it on every interface, and limit these by KVFERRY_LISTEN", text, ip.Zone())
	}
	network, err := netip.ParsePrefix(text)
	if !isNetwork {
		var ip netip.Addr
		if ip, err = netip.ParseAddr(text); err == nil {
			network = netip.PrefixFrom(ip, ip.BitLen())
		}
	}
	switch {
	case err != nil:
		return netip.Prefix{}, status.Errorf(status.InvalidArgument, "%.80q is no network as 10.0.0.0/8 or fd00::/8, and no IP address", text)
	case network.Addr().Is4In6():
		return netip.Prefix{}, status.Errorf(status.InvalidArgument, "%.80q is an IPv4 network in IPv6 notation: write it as IPv4", text)
	case network.Masked() != network:
		return netip.Prefix{}, status.Errorf(status.InvalidArgument, "%.80q has bits beyond its length: %v is the network, %v the address", text, network.Masked(), network.Addr())
	}
	return network, nil
}

// Contain reports whether an address may connect.
func (n Networks) Contain(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	return len(n) == 0 || slices.ContainsFunc(n, func(network netip.Prefix) bool { return network.Contains(ip) })
}

// String is what ParseNetworks reads.
func (n Networks) String() string {
	var texts []string
	for _, network := range n {
		texts = append(texts, network.String())
	}
	return strings.Join(texts, ",")
}

// ParseHosts reads IP addresses to listen on, joined by commas: 0.0.0.0 for all IPv4 addresses and :: for all addresses are
// each the only one. No text gives no addresses. An error carries status.InvalidArgument.
func ParseHosts(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	var hosts []string
	for entry := range strings.SplitSeq(text, ",") {
		host := strings.TrimSpace(entry)
		if inner, isBracketed := strings.CutPrefix(host, "["); isBracketed {
			host, isBracketed = strings.CutSuffix(inner, "]")
			if !isBracketed {
				host = "" // no address
			}
		}
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return nil, status.Errorf(status.InvalidArgument, "%.80q is no IP address", entry)
		}
		if ip.Zone() != "" && !ip.IsLinkLocalUnicast() {
			return nil, status.Errorf(status.InvalidArgument, "%.80q has an interface, which limits link-local addresses only: write it without %%%.20s", entry, ip.Zone())
		}
		if host = ip.Unmap().String(); !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	if len(hosts) > maxEntries {
		return nil, status.Errorf(status.InvalidArgument, "there are %d addresses, more than %d", len(hosts), maxEntries)
	}
	for _, host := range hosts {
		if len(hosts) > 1 && IsUnspecified(host) {
			return nil, status.Errorf(status.InvalidArgument, "%s stands for all addresses, and others are beside it", host)
		}
	}
	return hosts, nil
}

// IsUnspecified reports whether a host is 0.0.0.0 or ::, which stands for every address to listen on and is none to connect to.
func IsUnspecified(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsUnspecified()
}
