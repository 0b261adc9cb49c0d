package core

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"kvferry/core/device"
	"kvferry/core/metadata/kv"
	"kvferry/core/security"
	"kvferry/core/staging"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the generated part of the configuration guide")

// environment is a lookup over the variables given, and no others.
func environment(variables map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		text, ok := variables[name]
		return text, ok
	}
}

func TestManyProcessorsHaveMoreLanes(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	assert.Equal(t, 8, DefaultConfig().LanesPerPeer)
	assert.Equal(t, 8, DefaultConfig().LanesPerLink)
	runtime.GOMAXPROCS(15)
	assert.Equal(t, 4, DefaultConfig().LanesPerPeer)
	assert.Equal(t, 4, DefaultConfig().LanesPerLink)
}

func TestFewProcessorsHaveFewerLanesOverALink(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for processors, lanes := range map[int]int{1: 2, 2: 2, 3: 3, 4: 4} {
		runtime.GOMAXPROCS(processors)
		assert.Equal(t, lanes, DefaultConfig().LanesPerLink, processors)
		assert.Equal(t, 4, DefaultConfig().LanesPerPeer, processors)
	}
}

func TestDefaultsAreTheDocumentedOnes(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	assert.Equal(t, Config{
		MinPort: 15000, MaxPort: 17000, HandshakePort: 12001,
		HandshakeConnectTimeout: 5 * time.Second, HandshakeBacklog: 128, HandshakeMaxLength: 1 << 20,
		StatusTimeout: 30 * time.Second, ProgressTimeout: 30 * time.Second,
		SliceSize: 1 << 20, ConnectionPool: true, LanesPerPeer: 4, LanesPerLink: 2,
		TransferTimeout: 30 * time.Second, RetryCount: 9,
		MetadataKeepInterval: 10 * time.Second, EtcdLease: 30 * time.Second,
		LogLevel: "WARNING", MetricsInterval: 5 * time.Second, MetricsPeers: 64, SocketDir: "auto", TraceBatches: 256,
		StagingBlockSize: 2 << 20, StagingPoolSize: 256 << 20, StagingGatherBelow: 256 << 10, StagingMinRate: 16384, DeviceCopy: staging.Measured, DevicePrepare: true,
		SameHost: true, MaxSessions: 1024, FirstRequestTimeout: 10 * time.Second, MaxHandshakes: 128, MaxNotifications: 65536, MaxNotifyBytes: 64 << 20,
	}, DefaultConfig())
}

func TestEverySettingIsTakenFromItsVariable(t *testing.T) {
	c, warnings := LoadConfig(environment(map[string]string{
		"MC_FORCE_TCP": "", "MC_TCP_BIND_ADDRESS": "192.0.2.7", "MC_MIN_RPC_PORT": "20000", "MC_MAX_RPC_PORT": "61000",
		"MC_HANDSHAKE_PORT": "1", "MC_LEGACY_RPC_PORT_BINDING": "0", "MC_HANDSHAKE_CONNECT_TIMEOUT": "3599",
		"MC_HANDSHAKE_LISTEN_BACKLOG": "7", "MC_HANDSHAKE_MAX_LENGTH": "134217728", "MC_TCP_PROTO": "1",
		"MC_TCP_STATUS_TIMEOUT_SEC": "2", "MC_TCP_PROGRESS_TIMEOUT_SEC": "3", "MC_TCP_SLICE_SIZE": "65536",
		"MC_TCP_ENABLE_CONNECTION_POOL": "False", "MC_TCP_LANES_PER_PEER": "16", "MC_TRANSFER_TIMEOUT": "60",
		"MC_SLICE_TIMEOUT": "8", "MC_RETRY_CNT": "127", "MC_DISABLE_METACACHE": "1",
		"MC_TE_METADATA_REFRESH_INTERVAL_SECONDS": "9", "MC_METADATA_CLUSTER_ID": "blue",
		"MC_REDIS_USERNAME": "kv", "MC_REDIS_PASSWORD": "cache", "MC_REDIS_DB_INDEX": "255", "MC_USE_IPV6": "1",
		"MC_LOG_LEVEL": "trace", "MC_LOG_DIR": "/var/log", "MC_TE_METRIC": "yes", "MC_TE_METRIC_INTERVAL_SECONDS": "11", "KVFERRY_METRICS_PEERS": "23", "KVFERRY_METRICS_LISTEN": "unix:/run/kvferry.sock", "KVFERRY_SOCKET_DIR": "/run/kv",
		"KVFERRY_TRACE_FILE": "/var/trace.%p.json", "KVFERRY_TRACE_BATCHES": "24", "KVFERRY_TRACE_SLOWER_US": "25",
		"MC_CUSTOM_TOPO_JSON": "/etc/topology.json", "MC_METADATA_HTTP_TOKEN": "token",
		"KVFERRY_METADATA_CONNECT_TIMEOUT_MS": "16", "KVFERRY_METADATA_TIMEOUT_MS": "17", "KVFERRY_METADATA_CA": "/ca.pem",
		"KVFERRY_METADATA_CERT": "/cert.pem", "KVFERRY_METADATA_KEY": "/key.pem", "KVFERRY_METADATA_INSECURE": "on",
		"KVFERRY_METADATA_KEEP_SECONDS": "18",
		"KVFERRY_ETCD_TLS":              "yes", "KVFERRY_ETCD_USERNAME": "root", "KVFERRY_ETCD_PASSWORD": "door", "KVFERRY_ETCD_LEASE_SECONDS": "19",
		"KVFERRY_ASCENDCL": "/opt/cann/libascendcl.so", "KVFERRY_STAGING_BLOCK_SIZE": "65536",
		"KVFERRY_STAGING_POOL_SIZE": "262144", "KVFERRY_STAGING_GATHER_BELOW": "0", "KVFERRY_STAGING_MIN_RATE": "21",
		"KVFERRY_DEVICE_COPY": "batch", "KVFERRY_DEVICE_PREPARE": "0",
		"KVFERRY_MAX_SESSIONS": "12", "KVFERRY_FIRST_REQUEST_TIMEOUT_SEC": "20", "KVFERRY_MAX_HANDSHAKES": "13", "MC_HANDSHAKE_MAX_NOTIFY_ENTRIES": "14",
		"KVFERRY_NOTIFY_BYTES":             "1048576",
		"MC_TCP_MAX_QUEUED_BYTES_PER_PEER": "-1", "MC_NUM_TCP_IO_THREADS": "many", "MC_FORCE_SHM": "",
		"KVFERRY_SAME_HOST": "off", "KVFERRY_POLL_US": "15", "KVFERRY_LISTEN": "10.0.0.1,fd00::1", "KVFERRY_ALLOW": "10.0.0.0/8",
		"KVFERRY_SECURITY": "require", "KVFERRY_SECRET_FILE": "/secret", "KVFERRY_TLS_CERT": "/peer.pem", "KVFERRY_TLS_KEY": "/peer.key",
		"KVFERRY_TLS_CA": "/peers.pem", "KVFERRY_TLS_PEERS": "*.kv",
	}))
	assert.Empty(t, warnings)
	assert.Equal(t, Config{
		ForceTCP: true, BindAddress: "192.0.2.7", MinPort: 20000, MaxPort: 61000,
		HandshakePort: 1, LegacyPortBinding: true, HandshakeConnectTimeout: 3599 * time.Second,
		HandshakeBacklog: 7, HandshakeMaxLength: 128 << 20, ForceProtoV1: true,
		StatusTimeout: 2 * time.Second, ProgressTimeout: 3 * time.Second, SliceSize: 65536,
		ConnectionPool: false, LanesPerPeer: 16, LanesPerLink: 16, TransferTimeout: time.Minute,
		SliceTimeout: 8 * time.Second, RetryCount: 127, DisableMetaCache: true,
		MetaRefreshInterval: 9 * time.Second, ClusterID: "blue",
		RedisUsername: "kv", RedisPassword: "cache", RedisDB: 255, UseIPv6: true,
		LogLevel: "TRACE", LogDir: "/var/log", Metrics: true, MetricsInterval: 11 * time.Second, MetricsPeers: 23, MetricsListen: "unix:/run/kvferry.sock", SocketDir: "/run/kv",
		TraceFile: "/var/trace.%p.json", TraceBatches: 24, TraceSlower: 25 * time.Microsecond,
		MetadataHTTPToken: "token",
		Metadata: kv.Connection{
			ConnectTimeout: 16 * time.Millisecond, ReplyTimeout: 17 * time.Millisecond,
			CA: "/ca.pem", Cert: "/cert.pem", Key: "/key.pem", Insecure: true,
		},
		MetadataKeepInterval: 18 * time.Second,
		EtcdTLS:              true, EtcdUsername: "root", EtcdPassword: "door", EtcdLease: 19 * time.Second,
		AscendCL: "/opt/cann/libascendcl.so", StagingBlockSize: 65536, StagingPoolSize: 262144, StagingMinRate: 21,
		DeviceCopy:  staging.AlwaysBy(device.Batch),
		MaxSessions: 12, FirstRequestTimeout: 20 * time.Second, MaxHandshakes: 13, MaxNotifications: 14, MaxNotifyBytes: 1 << 20, Polling: 15 * time.Microsecond,
		Listen: "10.0.0.1,fd00::1", Allow: "10.0.0.0/8",
		Security: security.Settings{
			Mode: "require", SecretFile: "/secret", CertFile: "/peer.pem", KeyFile: "/peer.key", CAFile: "/peers.pem", Peers: "*.kv",
		},
	}, c)
}

func TestBadValueGivesTheDefaultAndOneWarningThatNamesIt(t *testing.T) {
	for variable, values := range map[string][]string{
		"MC_RETRY_CNT":                            {"", "0", "128", "-1", "nine", "9x", "1e2", "99999999999999999999"},
		"MC_HANDSHAKE_PORT":                       {"0", "65536"},
		"MC_HANDSHAKE_CONNECT_TIMEOUT":            {"0", "3600", "5s"},
		"MC_HANDSHAKE_LISTEN_BACKLOG":             {"0"},
		"MC_HANDSHAKE_MAX_LENGTH":                 {"1048575", "134217729"},
		"MC_TCP_STATUS_TIMEOUT_SEC":               {"0"},
		"MC_TCP_PROGRESS_TIMEOUT_SEC":             {"0"},
		"MC_TCP_SLICE_SIZE":                       {"0", "4095", "1073741825"},
		"MC_TCP_ENABLE_CONNECTION_POOL":           {"perhaps"},
		"MC_TCP_LANES_PER_PEER":                   {"0", "17"},
		"MC_TCP_MAX_CONNECTIONS_PER_PEER":         {"17"},
		"MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER":    {"0"},
		"MC_TCP_MAX_PENDING_ADMISSIONS_PER_PEER":  {"65536"},
		"MC_TCP_ADMISSION_TIMEOUT_MS":             {"600001"},
		"MC_TRANSFER_TIMEOUT":                     {"0", "-3", "soon"},
		"ASCEND_TRANSFER_TIMEOUT":                 {"0", "-3", "soon", "2147483648"},
		"MC_SLICE_TIMEOUT":                        {"-1", "65536"},
		"MC_TE_METADATA_REFRESH_INTERVAL_SECONDS": {"-1"},
		"MC_REDIS_DB_INDEX":                       {"-1", "256"},
		"MC_LOG_LEVEL":                            {"LOUD"},
		"MC_LOG_DIR":                              {"/var/\nlog"},
		"MC_TE_METRIC":                            {"2"},
		"MC_TE_METRIC_INTERVAL_SECONDS":           {"0"},
		"KVFERRY_METRICS_PEERS":                   {"-1", "65537", "all"},
		"KVFERRY_METRICS_LISTEN":                  {"a\nb"},
		"KVFERRY_SOCKET_DIR":                      {"", "kvferry", "./kvferry", "/tmp/a\nb"},
		"KVFERRY_TRACE_FILE":                      {"a\nb"},
		"KVFERRY_TRACE_BATCHES":                   {"0", "65537"},
		"KVFERRY_TRACE_SLOWER_US":                 {"-1", "1ms"},
		"KVFERRY_ASCENDCL":                        {"a\nb"},
		"KVFERRY_STAGING_BLOCK_SIZE":              {"0", "65535", "65537", "2147483648"},
		"KVFERRY_STAGING_POOL_SIZE":               {"262143", "-1", "64M"},
		"KVFERRY_STAGING_GATHER_BELOW":            {"-1", "1073741825"},
		"KVFERRY_DEVICE_COPY":                     {"fastest", "Batch", "1"},
		"KVFERRY_MAX_SESSIONS":                    {"0", "65537"},
		"KVFERRY_MAX_HANDSHAKES":                  {"0"},
		"KVFERRY_MAX_NOTIFICATIONS":               {"0", "16777217"},
		"KVFERRY_NOTIFY_BYTES":                    {"0", "1048575", "64M"},
		"MC_HANDSHAKE_MAX_NOTIFY_ENTRIES":         {"0", "16777217", "-1"},
		"KVFERRY_SAME_HOST":                       {"2", "perhaps"},
		"KVFERRY_METADATA_CONNECT_TIMEOUT_MS":     {"-1", "60001", "1s"},
		"KVFERRY_METADATA_TIMEOUT_MS":             {"-1", "60001"},
		"KVFERRY_METADATA_KEEP_SECONDS":           {"-1", "86401"},
		"KVFERRY_METADATA_INSECURE":               {"never"},
		"KVFERRY_ETCD_TLS":                        {"TLS"},
		"KVFERRY_ETCD_LEASE_SECONDS":              {"-1", "86401", "1m"},
		"KVFERRY_POLL_US":                         {"-1", "1000001", "1ms"},
	} {
		for _, value := range values {
			c, warnings := LoadConfig(environment(map[string]string{variable: value}))
			require.Len(t, warnings, 1, "%s=%q", variable, value)
			assert.Equal(t, variable, warnings[0].Variable)
			assert.Equal(t, value, warnings[0].Value)
			assert.NotEmpty(t, warnings[0].Reason)
			assert.Equal(t, DefaultConfig(), c, "%s=%q", variable, value)
			assert.Contains(t, warnings[0].String(), fmt.Sprintf("the default %q is used", warnings[0].Used))
		}
	}
}

func TestPortRangeIsTakenWholeOrNotAtAll(t *testing.T) {
	for _, test := range []struct{ least, most string }{
		{"80", "20000"}, {"20000", "65536"}, {"1023", "1024"}, {"20000", "32768"}, {"60999", "61000"},
		{"17001", "17000"}, {"20000", "many"},
	} {
		c, warnings := LoadConfig(environment(map[string]string{"MC_MIN_RPC_PORT": test.least, "MC_MAX_RPC_PORT": test.most}))
		assert.Equal(t, DefaultConfig(), c, "%v", test)
		require.Len(t, warnings, 1, "%v", test)
		assert.Equal(t, "MC_MIN_RPC_PORT, MC_MAX_RPC_PORT", warnings[0].Variable)
		assert.Equal(t, test.least+", "+test.most, warnings[0].Value)
		assert.Equal(t, "15000, 17000", warnings[0].Used)
	}
	c, warnings := LoadConfig(environment(map[string]string{"MC_MAX_RPC_PORT": "15000"}))
	assert.Empty(t, warnings)
	assert.Equal(t, [2]int{15000, 15000}, [2]int{c.MinPort, c.MaxPort}, "one bound alone, equal to the other")
}

func TestOlderSpellingsStandInForTheNewOnes(t *testing.T) {
	older := map[string]string{
		"MC_MIN_PRC_PORT": "18000", "MC_MAX_PRC_PORT": "19000", "MC_TCP_MAX_CONNECTIONS_PER_PEER": "2",
	}
	c, warnings := LoadConfig(environment(older))
	assert.Empty(t, warnings)
	assert.Equal(t, [3]int{18000, 19000, 2}, [3]int{c.MinPort, c.MaxPort, c.LanesPerPeer})

	older["MC_TCP_LANES_PER_PEER"] = "3"
	c, _ = LoadConfig(environment(older))
	assert.Equal(t, 3, c.LanesPerPeer, "the new spelling wins")
}

func TestTransferTimeoutIsAtLeastFiveSeconds(t *testing.T) {
	for text, want := range map[string]time.Duration{"1": 5, "4": 5, "5": 5, "6": 6} {
		c, warnings := LoadConfig(environment(map[string]string{"MC_TRANSFER_TIMEOUT": text}))
		assert.Empty(t, warnings)
		assert.Equal(t, want*time.Second, c.TransferTimeout, text)
	}
}

func TestTheTimeoutOfAscendBuildsCountsWhereMooncakesOwnIsNotSet(t *testing.T) {
	for _, c := range []struct {
		ascend, own string
		want        time.Duration
	}{
		{"1500", "", 1500 * time.Millisecond},
		{"1500", "7", 7 * time.Second},
		{"1500", "soon", 1500 * time.Millisecond},
		{"soon", "", 30 * time.Second},
	} {
		set := map[string]string{"ASCEND_TRANSFER_TIMEOUT": c.ascend}
		if c.own != "" {
			set["MC_TRANSFER_TIMEOUT"] = c.own
		}
		config, _ := LoadConfig(environment(set))
		assert.Equal(t, c.want, config.TransferTimeout, set)
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	for _, variable := range []string{"MC_REDIS_PASSWORD", "KVFERRY_ETCD_PASSWORD", "MC_METADATA_HTTP_TOKEN"} {
		c, warnings := LoadConfig(environment(map[string]string{variable: "hunter2"}))
		require.Empty(t, warnings)
		asJSON, err := json.Marshal(c)
		require.NoError(t, err)
		printed := fmt.Sprintf("%v %+v %#v %s", c, c, c, asJSON)
		assert.NotContains(t, printed, "hunter2", variable)

		_, warnings = LoadConfig(environment(map[string]string{variable: "hunter2\n"}))
		require.Len(t, warnings, 1, variable)
		assert.NotContains(t, fmt.Sprintf("%+v %s", warnings[0], warnings[0]), "hunter2", variable)
	}
}

// FuzzLoadConfig gives one value to every variable at once and to each alone.
func FuzzLoadConfig(f *testing.F) {
	for _, value := range []string{"", "0", "1", "-1", "5", "16", "255", "1024", "65535", "1048576", "1e3", "TRACE", "on", "\n"} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		c, _ := LoadConfig(func(string) (string, bool) { return value, true })
		requireInRange(t, c)
		for _, s := range settings {
			for _, v := range s.variables {
				c, warnings := LoadConfig(environment(map[string]string{v.name: value}))
				requireInRange(t, c)
				require.LessOrEqual(t, len(warnings), 1, v.name)
			}
		}
	})
}

func requireInRange(t *testing.T, c Config) {
	inRange := func(name string, n, least, most int) {
		require.True(t, n >= least && n <= most, "%s is %d, outside %d–%d", name, n, least, most)
	}
	inSeconds := func(name string, d time.Duration, least, most int) {
		require.Zero(t, d%time.Second, name)
		inRange(name, int(d/time.Second), least, most)
	}
	for _, port := range []int{c.MinPort, c.MaxPort} {
		inRange("port", port, 1024, 65535)
		require.False(t, port >= 32768 && port <= 60999, "port %d is ephemeral", port)
	}
	require.LessOrEqual(t, c.MinPort, c.MaxPort)
	inRange("HandshakePort", c.HandshakePort, 1, 65535)
	inSeconds("HandshakeConnectTimeout", c.HandshakeConnectTimeout, 1, 3599)
	inRange("HandshakeBacklog", c.HandshakeBacklog, 1, 65535)
	inRange("HandshakeMaxLength", c.HandshakeMaxLength, 1<<20, 128<<20)
	inSeconds("StatusTimeout", c.StatusTimeout, 1, math.MaxInt32)
	inSeconds("ProgressTimeout", c.ProgressTimeout, 1, math.MaxInt32)
	inRange("SliceSize", c.SliceSize, 4096, 1<<30)
	inRange("LanesPerPeer", c.LanesPerPeer, 1, 16)
	inRange("LanesPerLink", c.LanesPerLink, 1, c.LanesPerPeer)
	inRange("TransferTimeout", int(c.TransferTimeout/time.Millisecond), 1, math.MaxInt32*1000)
	inSeconds("SliceTimeout", c.SliceTimeout, 0, 65535)
	inRange("RetryCount", c.RetryCount, 1, 127)
	inSeconds("MetaRefreshInterval", c.MetaRefreshInterval, 0, math.MaxInt32)
	inSeconds("EtcdLease", c.EtcdLease, 0, 86400)
	inRange("RedisDB", c.RedisDB, 0, 255)
	require.Contains(t, logLevels, c.LogLevel)
	inSeconds("MetricsInterval", c.MetricsInterval, 1, math.MaxInt32)
	inRange("MetricsPeers", c.MetricsPeers, 0, 65536)
	inRange("StagingBlockSize", c.StagingBlockSize, 1<<16, 1<<30)
	inRange("StagingPoolSize", c.StagingPoolSize, 1<<18, 1<<40)
	inRange("StagingGatherBelow", c.StagingGatherBelow, 0, 1<<30)
	inRange("MaxSessions", c.MaxSessions, 1, 65536)
	inRange("MaxHandshakes", c.MaxHandshakes, 1, 65536)
	inRange("MaxNotifications", c.MaxNotifications, 1, 1<<24)
	inRange("MaxNotifyBytes", c.MaxNotifyBytes, 1<<20, 1<<40)
	inRange("Polling", int(c.Polling/time.Microsecond), 0, 1000000)
}

const guide = "../docs/configuration.md"

// TestConfigurationGuideIsCurrent compares the guide's table with the table of settings; with -update it writes it.
func TestConfigurationGuideIsCurrent(t *testing.T) {
	const begin, end = "<!-- begin: made by go generate ./core -->\n", "<!-- end -->"
	text, err := os.ReadFile(guide)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), begin)
	require.True(t, ok, "%s has no line %q", guide, begin)
	_, after, ok := strings.Cut(rest, end)
	require.True(t, ok, "%s has no line %q", guide, end)

	current := before + begin + guideTable() + end + after
	if *update {
		require.NoError(t, os.WriteFile(guide, []byte(current), 0o644))
		return
	}
	assert.Equal(t, current, string(text), "run go generate ./core")
}

// guideTable is the table of settings in Markdown.
func guideTable() string {
	var b strings.Builder
	b.WriteString("| variable | default | accepts | meaning |\n|---|---|---|---|\n")
	for _, s := range settings {
		var names, older, defaults []string
		for _, v := range s.variables {
			names = append(names, "`"+v.name+"`")
			defaults = append(defaults, cmp.Or(v.unset, notSet))
			if v.older != "" {
				older = append(older, "`"+v.older+"`")
			}
		}
		name := strings.Join(names, ", ")
		if older != nil {
			name += " (formerly " + strings.Join(older, ", ") + ")"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, strings.Join(defaults, ", "), s.kind.accepts, s.meaning)
	}
	return b.String()
}

func TestALogLineLooksUpTheSettingsOfTheLogAlone(t *testing.T) {
	var asked []string
	c := LoadLogConfig(func(variable string) (string, bool) {
		asked = append(asked, variable)
		return map[string]string{"MC_LOG_LEVEL": "trace", "MC_LOG_DIR": "/var/log"}[variable], true
	})
	require.Equal(t, []string{"MC_LOG_LEVEL", "MC_LOG_DIR"}, asked)
	want := DefaultConfig()
	want.LogLevel, want.LogDir = "TRACE", "/var/log"
	require.Equal(t, want, c)
}
