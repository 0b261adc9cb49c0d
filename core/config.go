package core

import (
	"fmt"
	"strconv"
	"time"

	"kvferry/core/metadata/kv"
	"kvferry/core/security"
	"kvferry/core/staging"
)

//go:generate go test -run ^TestConfigurationGuideIsCurrent$ . -update

// Config is every setting of an engine. The table in config_settings.go says for each field from which environment variable it
// comes, which values it may have, and what it does.
type Config struct {
	ForceTCP                bool
	BindAddress             string            // "" for the first address of an interface that is up
	Listen                  string            // addresses joined by commas; "" for those that fit the engine's name. An engine with others does not start
	Security                security.Settings // an engine with contradictory ones does not start
	Names                   string            // of this engine, see address.Names; "" for none beside its own. An engine with others does not start
	Allow                   string            // networks joined by commas; "" for all. An engine with others does not start
	MinPort, MaxPort        int               // both inclusive
	HandshakePort           int
	LegacyPortBinding       bool
	HandshakeConnectTimeout time.Duration
	HandshakeBacklog        int
	HandshakeMaxLength      int // bytes
	ForceProtoV1            bool
	StatusTimeout           time.Duration
	ProgressTimeout         time.Duration
	FirstRequestTimeout     time.Duration
	SliceSize               int // bytes
	ConnectionPool          bool
	LanesPerPeer            int
	LanesPerLink            int // LanesPerPeer for round trips from 300 us on, and unknown ones; not more than that
	TransferTimeout         time.Duration
	SliceTimeout            time.Duration // 0 is off
	RetryCount              int
	DisableMetaCache        bool
	MetaRefreshInterval     time.Duration // 0 is off
	ClusterID               string
	Metadata                kv.Connection
	MetadataKeepInterval    time.Duration // 0 is off
	EtcdTLS                 bool
	EtcdUsername            string
	EtcdPassword            Secret
	EtcdLease               time.Duration // 0 is none
	RedisUsername           string
	RedisPassword           Secret
	RedisDB                 int
	UseIPv6                 bool
	LogLevel                string // TRACE, INFO, WARNING or ERROR
	LogDir                  string // "" is standard error
	Metrics                 bool
	MetricsInterval         time.Duration
	MetricsPeers            int
	MetricsListen           string // see exporter.Attach; "" for nowhere
	SocketDir               string // see exporter.AttachPrivately
	TraceFile               string // see trace.Options; "" for none
	TraceBatches            int
	TraceSlower             time.Duration
	MetadataHTTPToken       Secret
	AscendCL                string // "" for where the loader finds it
	CUDA                    string // "" for where the loader finds it
	StagingBlockSize        int    // bytes
	StagingPoolSize         int    // bytes
	StagingGatherBelow      int    // bytes; 0 is off
	StagingMinRate          int    // bytes per second; 0 is off
	DeviceCopy              staging.Copying
	DevicePrepare           bool
	MaxSessions             int
	MaxHandshakes           int
	MaxNotifications        int
	MaxNotifyBytes          int
	SameHost                bool
	Congestion              string        // algorithm of TCP connections between engines; "" is the system's
	Polling                 time.Duration // 0 is off
}

// DefaultConfig is the configuration of a process that has none of the variables.
func DefaultConfig() Config {
	c, _ := LoadConfig(func(string) (string, bool) { return "", false })
	return c
}

// LoadConfig reads every setting through lookup, a function like os.LookupEnv. It cannot fail: a value that does not parse or is
// out of range is replaced by the default, with one warning.
func LoadConfig(lookup func(variable string) (string, bool)) (Config, []Warning) {
	var c Config
	var warnings []Warning
	for _, s := range settings {
		if w := s.load(&c, lookup); w != nil {
			warnings = append(warnings, *w)
		}
	}
	return c, warnings
}

// LoadLogConfig is LoadConfig for a line that belongs to no engine: it looks up the settings of the log alone.
func LoadLogConfig(lookup func(variable string) (string, bool)) Config {
	c, _ := LoadConfig(func(variable string) (string, bool) {
		if variable != logLevelVariable && variable != logDirVariable {
			return "", false
		}
		return lookup(variable)
	})
	return c
}

// Warning is about one setting whose value in the environment is not valid, and was replaced by the default.
type Warning struct {
	Variable string // "MC_RETRY_CNT", or several that are judged together: "MC_MIN_RPC_PORT, MC_MAX_RPC_PORT"
	Value    string // what was found; asterisks for a secret
	Used     string // the default that replaces it
	Reason   string
}

// String is the warning as a sentence.
func (w Warning) String() string {
	return fmt.Sprintf("%s: %.100q is ignored, %.200s; the default %q is used", w.Variable, w.Value, w.Reason, w.Used)
}

// Secret is text that is never printed: every way of formatting or marshalling it gives asterisks, so that a Config
// can be logged whole. string(s) is the text itself.
type Secret string

// String hides the text, also from %v and %s.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString hides the text from %#v.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// MarshalText hides the text from JSON and from structured logs.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
