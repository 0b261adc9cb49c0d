package core

import (
	"os"
	"slices"

	"kvferry/core/address"
	"kvferry/core/security"
	"kvferry/core/status"

	"go.uber.org/zap"
)

// site is the address of an engine, and the range of its ports.
type site struct {
	host             string           // the host that peers connect to, without brackets
	doubt            string           // why peers cannot connect to that host, as far as this machine can tell; "" if they can
	listen           []string         // addresses that both ports listen on; none: all
	allow            address.Networks // that may connect to both ports
	names            address.Names    // further ones by which peers may ask for the engine
	minPort, maxPort int              // the range that the handshake port is picked from
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
	return s, s.admission(c)
}

// admission finds where an engine listens, and for whom. An error names the setting: with a default in its place, peers that the
// setting keeps out could connect.
func (s *site) admission(c *Config) (err error) {
	if s.allow, err = address.ParseNetworks(c.Allow); err != nil {
		return status.Errorf(status.InvalidArgument, "KVFERRY_ALLOW: %w", err)
	}
	if s.names, err = address.ParseNames(c.Names); err != nil {
		return status.Errorf(status.InvalidArgument, "KVFERRY_NAMES: %w", err)
	}
	if s.listen, err = address.ParseHosts(c.Listen); err != nil {
		return status.Errorf(status.InvalidArgument, "KVFERRY_LISTEN: %w", err)
	}
	if len(s.listen) > 0 {
		// Connections to another address may be forwarded to these.
		if address.IsUnspecified(s.host) {
			_, s.doubt = address.Inspect(s.host)
		}
		return nil
	}
	host, doubt := address.Inspect(s.host)
	if s.doubt = doubt; host != "" {
		s.listen = []string{host}
	}
	return nil
}

// further are the names by which peers may ask for the engine beside its own: those of the setting, and the host's name.
func (s *site) further(port int) address.Names {
	names := slices.Clone(s.names)
	if host, err := os.Hostname(); err == nil && address.CheckHost(host) == nil && address.IsElsewhere(host) {
		names = append(names, address.Name{Host: host, Port: port}.HostPort())
	}
	return names
}

// warn logs what an operator is likely not to want.
func (s *site) warn(name string, mode security.Mode, log *zap.Logger) {
	if s.doubt != "" {
		log.Warn("peers cannot connect to the address that this engine gives them, unless connections are forwarded from there; if they are, set KVFERRY_LISTEN",
			zap.String("name", name), zap.String("reason", s.doubt))
	}
	if len(s.listen) == 0 && len(s.allow) == 0 && mode != security.Require {
		log.Warn("this engine listens on every address of the machine, and anybody may connect: KVFERRY_LISTEN, KVFERRY_ALLOW and KVFERRY_SECURITY limit that",
			zap.String("name", name))
	}
}

// Listen opens a port of the engine: on the addresses that it listens on, for the networks that may connect. The caller closes
// it.
func (e *Engine) Listen(minPort, maxPort, backlog int) (*address.Listener, error) {
	l, err := address.Listen(e.ctx, address.Options{
		Hosts: e.site.listen, MinPort: minPort, MaxPort: maxPort, Backlog: backlog, Allow: e.site.allow, Log: e.log, Refused: &e.notAllowed,
	})
	if err != nil && e.config.Listen != "" {
		err = status.Errorf(status.Of(err, status.Socket), "KVFERRY_LISTEN: %w", err)
	}
	return l, err
}
