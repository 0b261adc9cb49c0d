package metadata

import (
	"encoding/json"
	"math"
	"net"
	"strconv"

	"kvferry/core/address"
)

// rpcMeta is the value of an rpc_meta key.
type rpcMeta struct {
	Host     string  `json:"ip_or_host_name"`
	Identity string  `json:"kvferry_identity,omitempty"` // of the engine, where the entry is signed; Mooncake ignores it
	Version  version `json:"metadata_version,omitempty"`
	Port     int     `json:"rpc_port"`
}

// sameAddress reports whether both are of one handshake port.
func (m rpcMeta) sameAddress(other rpcMeta) bool { return m.Host == other.Host && m.Port == other.Port }

func (m rpcMeta) hostPort() string { return net.JoinHostPort(m.Host, strconv.Itoa(m.Port)) }

// metaOf is what rpc_meta says of an engine at "host:port".
func metaOf(hostPort string) (rpcMeta, error) {
	at, err := address.Parse(hostPort, 0)
	return rpcMeta{Host: at.Host, Port: at.Port}, err
}

// parseMeta reads the value of an rpc_meta key. Mooncake may have put an IPv6 address in brackets.
func parseMeta(value []byte) (rpcMeta, error) {
	var m rpcMeta
	if err := json.Unmarshal(value, &m); err != nil {
		return m, jsonError("the value", err)
	}
	var err error
	if m.Host, err = address.BareHost(m.Host); err != nil {
		return m, err
	}
	if m.Port < 1 || m.Port > math.MaxUint16 {
		return m, malformed("rpc_port %d is not a port", m.Port)
	}
	return m, nil
}
