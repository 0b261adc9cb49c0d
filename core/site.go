package core

import (
	"kvferry/core/address"
	"kvferry/core/status"
)

// site is the address of an engine, and the range of its ports.
type site struct {
	host             string // the host that peers connect to, without brackets
	listenHost       string // see Engine.ListenHost
	minPort, maxPort int    // the range that the handshake port is picked from
}

// siteOf finds the address of an engine. In P2P mode peers connect to the host in its name. With central metadata they look the
// address up, and it need not be in the name.
func siteOf(name address.Name, central bool, c *Config) (site, error) {
	s := site{host: name.Host, minPort: c.MinPort, maxPort: c.MaxPort}
	switch {
	case !central:
	case c.LegacyPortBinding:
		s.minPort, s.maxPort = name.Port, name.Port
	case c.BindAddress != "":
		var err error
		if s.host, err = address.BareHost(c.BindAddress); err != nil {
			return s, status.Errorf(status.InvalidArgument, "MC_TCP_BIND_ADDRESS: %w", err)
		}
	default:
		if s.host = address.Published(c.UseIPv6); s.host == "" {
			return s, status.Errorf(status.InvalidArgument, "no interface is up that has an address for peers to connect to: "+
				"set MC_TCP_BIND_ADDRESS to this machine's")
		}
	}
	s.listenHost = address.ListenHost(s.host)
	return s, nil
}
