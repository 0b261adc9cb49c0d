package security

import (
	"cmp"

	"kvferry/core/status"
)

// Settings are what the environment says about security. Empty fields are not set.
type Settings struct {
	Mode       string // KVFERRY_SECURITY: off, prefer or require
	SecretFile string // KVFERRY_SECRET_FILE
	CertFile   string // KVFERRY_TLS_CERT
	KeyFile    string // KVFERRY_TLS_KEY
	CAFile     string // KVFERRY_TLS_CA
	Peers      string // KVFERRY_TLS_PEERS

	ShownPeers int // so many peers have their own counts of failures, and the others are counted together
}

// Mode is what an engine demands of its peers.
type Mode int

const (
	// Off: peers are neither authenticated nor are connections encrypted. It is the default where neither a secret nor a
	// certificate is configured.
	Off Mode = iota
	// Prefer: connections between engines with Prefer or Require are authenticated and encrypted. Engines that cannot do
	// either, Mooncake's and those with Off, are served as with Off. An attacker who can answer in the place of a peer can
	// claim to be such an engine, so this mode is for moving a cluster from Off to Require.
	Prefer
	// Require: nobody is served who does not prove to belong to the cluster, and no engine is connected to that does not.
	// It is the default where a secret or a certificate is configured. An operator who configures one wants to keep strangers
	// out. With Require a peer that lacks the secret is refused, and both logs say so; with Prefer the engines would send KV
	// cache in the clear, and nobody would notice.
	Require
)

func (m Mode) String() string { return [...]string{"off", "prefer", "require"}[m] }

// mode is what the settings ask for. An error names the settings that contradict each other, and carries
// status.InvalidArgument: no default stands in for a demand that cannot be understood.
func (s Settings) mode() (Mode, error) {
	configured := s.SecretFile != "" || s.usesCertificates()
	switch {
	case s.SecretFile != "" && s.usesCertificates():
		return Off, status.Errorf(status.InvalidArgument,
			"KVFERRY_SECRET_FILE and %s are both set: engines authenticate each other by a secret or by certificates, not by both", s.aCertificateSetting())
	case s.Peers != "" && !s.usesCertificates():
		return Off, status.Errorf(status.InvalidArgument,
			"KVFERRY_TLS_PEERS is set without KVFERRY_TLS_CERT, KVFERRY_TLS_KEY and KVFERRY_TLS_CA: only certificates have names to compare with it")
	case s.usesCertificates() && (s.CertFile == "" || s.KeyFile == "" || s.CAFile == ""):
		return Off, status.Errorf(status.InvalidArgument,
			"%s is set without %s: a certificate takes KVFERRY_TLS_CERT, KVFERRY_TLS_KEY and KVFERRY_TLS_CA", s.aCertificateSetting(), s.missingCertificateSetting())
	}
	switch s.Mode {
	case "":
		if configured {
			return Require, nil
		}
		return Off, nil
	case "off":
		return Off, nil
	case "prefer", "require":
		if !configured {
			return Off, status.Errorf(status.InvalidArgument,
				"KVFERRY_SECURITY=%s needs KVFERRY_SECRET_FILE, or KVFERRY_TLS_CERT, KVFERRY_TLS_KEY and KVFERRY_TLS_CA", s.Mode)
		}
		if s.Mode == "prefer" {
			return Prefer, nil
		}
		return Require, nil
	}
	return Off, status.Errorf(status.InvalidArgument, "KVFERRY_SECURITY is %.40q, and must be off, prefer or require", s.Mode)
}

func (s Settings) usesCertificates() bool {
	return s.CertFile != "" || s.KeyFile != "" || s.CAFile != ""
}

func (s Settings) aCertificateSetting() string {
	return cmp.Or(ifSet(s.CertFile, "KVFERRY_TLS_CERT"), ifSet(s.KeyFile, "KVFERRY_TLS_KEY"), "KVFERRY_TLS_CA")
}

func (s Settings) missingCertificateSetting() string {
	return cmp.Or(ifSet(s.CertFile, "", "KVFERRY_TLS_CERT"), ifSet(s.KeyFile, "", "KVFERRY_TLS_KEY"), "KVFERRY_TLS_CA")
}

// ifSet is the name of a setting with a value, or else the other text.
func ifSet(value, name string, otherwise ...string) string {
	if value != "" {
		return name
	}
	return cmp.Or(otherwise...)
}
