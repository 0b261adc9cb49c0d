package core

import (
	"fmt"
	"math"
	"strings"
	"time"

	"kvferry/core/staging"
)

// setting is one row of the table.
type setting struct {
	variables []variable // two where one value can only be judged together with the other
	kind      kind
	meaning   string // a sentence for the guide
}

// variable is an environment variable that a value comes from.
type variable struct {
	name  string
	older string // older spelling, looked up when name is not set; "" for none
	unset string // the value when neither is set
}

// kind is what a setting accepts, and the field of Config that it sets.
type kind struct {
	accepts string                                // unit and range, for the guide
	parse   func(c *Config, texts []string) error // one text for each variable
	secret  bool                                  // the value must not be printed
}

// load sets the field of c to the value in the environment. A value that is not accepted is replaced by the default, with a
// warning.
func (s *setting) load(c *Config, lookup func(string) (string, bool)) *Warning {
	var names, texts, defaults []string
	for _, v := range s.variables {
		name, text := v.find(lookup)
		names, texts, defaults = append(names, name), append(texts, text), append(defaults, v.unset)
	}
	err := s.kind.parse(c, texts)
	if err == nil {
		return nil
	}
	if err := s.kind.parse(c, defaults); err != nil {
		panic(fmt.Sprintf("default of %v: %v", names, err)) // a mistake in the table, which every test would show
	}
	w := Warning{strings.Join(names, ", "), strings.Join(texts, ", "), strings.Join(defaults, ", "), err.Error()}
	if s.kind.secret {
		w.Value = Secret(w.Value).String()
	}
	return &w
}

// find returns the spelling that is in use and its value.
func (v *variable) find(lookup func(string) (string, bool)) (name, text string) {
	if text, ok := lookup(v.name); ok {
		return v.name, text
	}
	if v.older != "" {
		if text, ok := lookup(v.older); ok {
			return v.older, text
		}
	}
	return v.name, v.unset
}

// notSet is the value of a variable that is not set, where only its presence counts.
const notSet = "unset"

// The settings of the log.
const (
	logLevelVariable = "MC_LOG_LEVEL"
	logDirVariable   = "MC_LOG_DIR"
)

// settings is the table: every environment variable that an engine reads. The guide's table is made from it.
var settings = []setting{
	{one(logLevelVariable, "WARNING"), level(),
		"The least severe level that is logged. `TRACE` shows everything."},
	{one(logDirVariable, ""), text(func(c *Config) *string { return &c.LogDir }),
		"Directory for log files, one for each process. Where it is not set or cannot be written, the log goes to standard error."},

	{one("MC_FORCE_TCP", notSet), presence(func(c *Config) *bool { return &c.ForceTCP }),
		"Engines use TCP only, also between engines on the same host, see `KVFERRY_SAME_HOST`."},
	{one("MC_TCP_BIND_ADDRESS", ""), text(func(c *Config) *string { return &c.BindAddress }),
		"With central metadata: the address by which peers reach this engine. Where it is not set: the first address of an interface that is up."},
	{one("KVFERRY_LISTEN", ""), strict("IP addresses of this machine, joined by commas", func(c *Config) *string { return &c.Listen }),
		"Addresses that both ports listen on, whatever the engine's name is. `0.0.0.0` is every IPv4 address, `::` every address. If it is not set, the name decides."},
	{one("KVFERRY_ALLOW", ""), strict("networks as `10.0.0.0/8` and IP addresses, joined by commas", func(c *Config) *string { return &c.Allow }),
		"Networks that may connect to both ports. Connections from other addresses are reset before a byte of them is read. If it is not set, everybody may connect."},
	{one("KVFERRY_NAMES", ""), strict("`host:port`, `host` or `*`, joined by commas", func(c *Config) *string { return &c.Names }),
		"With `P2PHANDSHAKE` and `KVFERRY_SECURITY=require`: further names by which peers may open this engine, such as that of a Kubernetes service, or an address that is forwarded to it. A host without a port stands for all of its ports, `*` for every name."},
	{one("KVFERRY_SECURITY", ""), strict("`off`, `prefer`, `require`", func(c *Config) *string { return &c.Security.Mode }),
		"What the engine demands of its peers. `require`: they prove that they belong to the cluster, and all connections are encrypted. `prefer`: this holds between kvferry engines, and Mooncake's are served without. If it is not set: `require` with a secret or a certificate, otherwise `off`."},
	{one("KVFERRY_SECRET_FILE", ""), strict("a file", func(c *Config) *string { return &c.Security.SecretFile }),
		"File with the cluster's secret, of at least 32 characters, on a line. Further lines have further secrets that the engine accepts. The engine reads the file again when it changes."},
	{one("KVFERRY_TLS_CERT", ""), strict("a file", func(c *Config) *string { return &c.Security.CertFile }),
		"PEM file of this engine's certificate, for servers and for clients, instead of a secret. The engine reads it again when it changes, and so the next two files."},
	{one("KVFERRY_TLS_KEY", ""), strict("a file", func(c *Config) *string { return &c.Security.KeyFile }),
		"PEM file of the private key of that certificate."},
	{one("KVFERRY_TLS_CA", ""), strict("a file", func(c *Config) *string { return &c.Security.CAFile }),
		"PEM file of the CA certificates by which the engine verifies its peers."},
	{one("KVFERRY_TLS_PEERS", ""), strict("DNS names, IP addresses and URIs, joined by commas", func(c *Config) *string { return &c.Security.Peers }),
		"Names of the peers in their certificates, one of which must fit. A `*` stands for one segment, as in `spiffe://cluster/ns/*/sa/decode`. If it is not set, every peer that `KVFERRY_TLS_CA` vouches for is accepted."},
	{[]variable{{"MC_MIN_RPC_PORT", "MC_MIN_PRC_PORT", "15000"}, {"MC_MAX_RPC_PORT", "MC_MAX_PRC_PORT", "17000"}}, portRange(),
		"The range of ports from which the engine picks its handshake port and its data port. If either variable is invalid, both have their default."},
	{one("MC_HANDSHAKE_PORT", "12001"), integer("", 1, 65535, func(c *Config) *int { return &c.HandshakePort }),
		"Handshake port of a peer whose name has no port."},
	{one("MC_LEGACY_RPC_PORT_BINDING", notSet), presence(func(c *Config) *bool { return &c.LegacyPortBinding }),
		"With central metadata: the engine's handshake port is the one in its own name."},
	{one("MC_USE_IPV6", notSet), presence(func(c *Config) *bool { return &c.UseIPv6 }),
		"With central metadata: the engine publishes an IPv6 address. Its ports accept IPv4 and IPv6 in any case."},

	{one("MC_HANDSHAKE_CONNECT_TIMEOUT", "5"), seconds(1, 3599, func(c *Config) *time.Duration { return &c.HandshakeConnectTimeout }),
		"How long the engine tries to connect to a peer's handshake port, and asks again for a descriptor where the peer closes connections unanswered."},
	{one("MC_HANDSHAKE_LISTEN_BACKLOG", "128"), integer("connections", 1, 65535, func(c *Config) *int { return &c.HandshakeBacklog }),
		"How many connections to the handshake port the kernel keeps until the engine accepts them."},
	{one("MC_HANDSHAKE_MAX_LENGTH", "1048576"), integer("bytes", 1<<20, 128<<20, func(c *Config) *int { return &c.HandshakeMaxLength }),
		"Longest handshake message that the engine reads or sends."},

	{one("MC_TCP_PROTO", ""), exactlyOne(func(c *Config) *bool { return &c.ForceProtoV1 }),
		"`1`: the engine starts transfers with version 1 of the data protocol, whatever the peer offers."},
	{one("MC_TCP_STATUS_TIMEOUT_SEC", "30"), seconds(1, math.MaxInt32, func(c *Config) *time.Duration { return &c.StatusTimeout }),
		"How long a peer may take to answer a request that it has received completely. A shorter `MC_TCP_PROGRESS_TIMEOUT_SEC` takes precedence, since such a transfer makes no progress."},
	{one("MC_TCP_PROGRESS_TIMEOUT_SEC", "30"), seconds(1, math.MaxInt32, func(c *Config) *time.Duration { return &c.ProgressTimeout }),
		"The engine gives up a transfer when none of its bytes has moved for this long, also while it waits for the answer to a WRITE."},
	{one("MC_TCP_SLICE_SIZE", "1048576"), integer("bytes", 4<<10, 1<<30, func(c *Config) *int { return &c.SliceSize }),
		"Maximum payload of one request. The engine cuts larger tasks, so that all lanes share them."},
	{one("MC_TCP_ENABLE_CONNECTION_POOL", "1"), onOff(func(c *Config) *bool { return &c.ConnectionPool }),
		"Off: the engine opens a connection for each request."},
	{[]variable{{"MC_TCP_LANES_PER_PEER", "MC_TCP_MAX_CONNECTIONS_PER_PEER", usualLanes}}, lanes(),
		"Maximum number of data connections to one peer. Connections that wait for a page of memory are replaced until they end, up to four times as many."},
	{one("MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER", "1024"), unused(1, 65535),
		"Accepted, without effect: a queue holds all that was submitted, and a batch is never refused because it is large."},
	{one("MC_TCP_MAX_PENDING_ADMISSIONS_PER_PEER", "1024"), unused(1, 65535),
		"Accepted, without effect, as above."},
	{one("MC_TCP_ADMISSION_TIMEOUT_MS", "1000"), unused(1, 600000),
		"Accepted, without effect, as above."},
	{one("MC_TCP_MAX_QUEUED_BYTES_PER_PEER", ""), ignored(),
		"Accepted, without effect, as above."},
	{one("MC_NUM_TCP_IO_THREADS", ""), ignored(),
		"Accepted, without effect: connections have no threads of their own."},
	{one("MC_FORCE_SHM", ""), ignored(),
		"Accepted, without effect: kvferry engines on the same host need no transport for shared memory, see `KVFERRY_SAME_HOST`."},

	{one("ASCEND_TRANSFER_TIMEOUT", "30000"), milliseconds(1, math.MaxInt32, func(c *Config) *time.Duration { return &c.TransferTimeout }),
		"Replaces `MC_TRANSFER_TIMEOUT` where that is not set. Mooncake's builds for Ascend read it; vllm-ascend sets it."},
	{one("MC_TRANSFER_TIMEOUT", ascendTimeout), transferTimeout(),
		"After how long a synchronous call of the Python package gives up. kvferry adds 1 s for each GiB, and takes 1 to 4 as 5. Read when the engine object is made."},
	{one("MC_SLICE_TIMEOUT", "0"), seconds(0, 65535, func(c *Config) *time.Duration { return &c.SliceTimeout }),
		"After how long the engine gives up a task, which then reports TIMEOUT; 0: never. A task that is given up for another reason reports FAILED."},
	{one("MC_RETRY_CNT", "9"), integer("retries", 1, 127, func(c *Config) *int { return &c.RetryCount }),
		"How often the engine sends unacknowledged requests again after their connection broke."},

	{one("MC_DISABLE_METACACHE", notSet), presence(func(c *Config) *bool { return &c.DisableMetaCache }),
		"The engine fetches a peer's segment descriptor again at each use."},
	{one("MC_TE_METADATA_REFRESH_INTERVAL_SECONDS", "0"), seconds(0, math.MaxInt32, func(c *Config) *time.Duration { return &c.MetaRefreshInterval }),
		"How often the engine fetches cached descriptors again; 0: only when they prove to be out of date."},
	{one("MC_METADATA_CLUSTER_ID", ""), text(func(c *Config) *string { return &c.ClusterID }),
		"Prefix of the keys in a central metadata store."},
	{one("MC_METADATA_HTTP_TOKEN", ""), secret(func(c *Config) *Secret { return &c.MetadataHTTPToken }),
		"Bearer token for an HTTP metadata server. Never logged."},
	{one("KVFERRY_METADATA_CONNECT_TIMEOUT_MS", "0"), milliseconds(0, 60000, func(c *Config) *time.Duration { return &c.Metadata.ConnectTimeout }),
		"How long the engine tries to connect to a central metadata store; 0: 1500 with HTTP, 5000 otherwise."},
	{one("KVFERRY_METADATA_TIMEOUT_MS", "0"), milliseconds(0, 60000, func(c *Config) *time.Duration { return &c.Metadata.ReplyTimeout }),
		"How long one request to a central metadata store may take, including the time to connect; 0: 3000 with HTTP, 5000 otherwise."},
	{one("KVFERRY_METADATA_KEEP_SECONDS", "10"), seconds(0, 86400, func(c *Config) *time.Duration { return &c.MetadataKeepInterval }),
		"How often the engine checks that a central metadata store still has its entries, and writes missing ones again; 0: never."},
	{one("KVFERRY_METADATA_CA", ""), text(func(c *Config) *string { return &c.Metadata.CA }),
		"PEM file of the CA certificates by which the engine verifies a metadata store over TLS, instead of the system's."},
	{one("KVFERRY_METADATA_CERT", ""), text(func(c *Config) *string { return &c.Metadata.Cert }),
		"PEM file of the client certificate that the engine presents to a metadata store over TLS."},
	{one("KVFERRY_METADATA_KEY", ""), text(func(c *Config) *string { return &c.Metadata.Key }),
		"PEM file of the private key of that certificate."},
	{one("KVFERRY_METADATA_INSECURE", "0"), onOff(func(c *Config) *bool { return &c.Metadata.Insecure }),
		"On: the engine does not verify the certificate of a metadata store. For tests only."},
	{one("KVFERRY_ETCD_TLS", "0"), onOff(func(c *Config) *bool { return &c.EtcdTLS }),
		"On: the engine connects to an etcd metadata store over TLS."},
	{one("KVFERRY_ETCD_USERNAME", ""), text(func(c *Config) *string { return &c.EtcdUsername }),
		"User name for an etcd metadata store."},
	{one("KVFERRY_ETCD_PASSWORD", ""), secret(func(c *Config) *Secret { return &c.EtcdPassword }),
		"Password for an etcd metadata store. Never logged."},
	{one("KVFERRY_ETCD_LEASE_SECONDS", "30"), seconds(0, 86400, func(c *Config) *time.Duration { return &c.EtcdLease }),
		"After how long an etcd metadata store removes the entries of an engine that was killed; 0: never."},
	{one("MC_REDIS_USERNAME", ""), text(func(c *Config) *string { return &c.RedisUsername }),
		"User name for a Redis metadata store."},
	{one("MC_REDIS_PASSWORD", ""), secret(func(c *Config) *Secret { return &c.RedisPassword }),
		"Password for a Redis metadata store. Never logged."},
	{one("MC_REDIS_DB_INDEX", "0"), integer("", 0, 255, func(c *Config) *int { return &c.RedisDB }),
		"Database of a Redis metadata store."},

	{one("MC_TE_METRIC", "0"), onOff(func(c *Config) *bool { return &c.Metrics }),
		"On: after each interval in which bytes have moved or requests have ended, the engine logs its throughput, how long batches took, and how many requests have failed since it was made."},
	{one("MC_TE_METRIC_INTERVAL_SECONDS", "5"), seconds(1, math.MaxInt32, func(c *Config) *time.Duration { return &c.MetricsInterval }),
		"How often it does so."},
	{one("KVFERRY_METRICS_PEERS", "64"), integer("peers", 0, 65536, func(c *Config) *int { return &c.MetricsPeers }),
		"Maximum number of peers that metrics show by their names, as the initiator and as the target. The others are shown together, as `other`. A peer that was not in use for ten minutes makes room for a new one."},
	{one("KVFERRY_METRICS_LISTEN", ""), text(func(c *Config) *string { return &c.MetricsListen }),
		"Where the engines of the process show their [metrics](operations.md): `HOST:PORT`, `HOST:FIRST-LAST` for the first free port of a range, or `unix:PATH`, in which `%p` is the process's number. If that is in use or invalid, a warning says so, and the engines work without it."},
	{one("KVFERRY_SOCKET_DIR", "auto"), ownFolder(func(c *Config) *string { return &c.SocketDir }),
		"Folder of this user alone, in which each process has a socket by which `kvferry top` finds its engines. `auto`: `kvferry-UID` in `/tmp`. `off`: none. If the socket cannot be made, the engines work without it."},
	{one("KVFERRY_TRACE_FILE", ""), text(func(c *Config) *string { return &c.TraceFile }),
		"File for [traces](operations.md#traces) of the process's engines: where the time of each batch went. `%p` in it is the process's number. If it is not set, nothing is recorded."},
	{one("KVFERRY_TRACE_BATCHES", "256"), integer("batches", 1, 65536, func(c *Config) *int { return &c.TraceBatches }),
		"How many batches the trace has, the last ones of each engine that were recorded, and sixteen times as many events of peers' requests. So many are recorded in each quarter of a second."},
	{one("KVFERRY_TRACE_SLOWER_US", "0"), microseconds(0, 3600000000, func(c *Config) *time.Duration { return &c.TraceSlower }),
		"The trace has only batches that took as long as this, or longer."},
	{one("MC_CUSTOM_TOPO_JSON", ""), text(func(*Config) *string { return new(string) }),
		"File with the topology that `get_local_topology` of the Python package returns. A missing or empty file is ignored."},

	{one("KVFERRY_ASCENDCL", ""), text(func(c *Config) *string { return &c.AscendCL }),
		"File of the AscendCL library (`libascendcl.so`) that the engine uses instead of the one that it finds by the loader or the toolkit's variables."},
	{one("KVFERRY_CUDA", ""), text(func(c *Config) *string { return &c.CUDA }),
		"File of the CUDA driver's library (`libcuda.so.1`) that the engine uses instead of the one that the loader finds."},
	{one("KVFERRY_STAGING_BLOCK_SIZE", "2097152"), multiple(staging.Granule, 1<<30, func(c *Config) *int { return &c.StagingBlockSize }),
		"Size of a staging block, and so the maximum that one copy between a device and the host moves."},
	{one("KVFERRY_STAGING_POOL_SIZE", "268435456"), integer("bytes", 4*staging.Granule, 1<<40, func(c *Config) *int { return &c.StagingPoolSize }),
		"Maximum page-locked memory for the staging blocks of one device. Each direction has half of it, and at least one block. The engine allocates it when it needs it."},
	{one("KVFERRY_STAGING_GATHER_BELOW", "262144"), integer("bytes", 0, 1<<30, func(c *Config) *int { return &c.StagingGatherBelow }),
		"Blocks of device memory shorter than this may be gathered on the device, and copied together. 0: the engine copies each block by itself, whatever `KVFERRY_DEVICE_COPY` says."},
	{one("KVFERRY_DEVICE_COPY", "auto"), copying(func(c *Config) *staging.Copying { return &c.DeviceCopy }),
		"How the engine copies the blocks of a transfer between a device and the host. `single`: each by itself. `batch`: all in one call. `gather`: by way of a block of device memory. `kernel`: by a kernel of the device. `matrix`: blocks at one distance from each other as the rows of a matrix. What a device or a block does not allow is copied the next simpler way. `default`: `gather` on NPUs, on GPUs `kernel` for blocks below 32 KiB and `batch` for longer ones. `auto`: as `default`, until a short measurement on the device has found the fastest way for each block size."},
	{one("KVFERRY_DEVICE_PREPARE", "1"), onOff(func(c *Config) *bool { return &c.DevicePrepare }),
		"On: when memory of a device is registered for the first time, the engine makes streams, loads the kernels that copy, and measures the device, in the background. Off: the first transfers do, and take some milliseconds longer."},
	{one("KVFERRY_STAGING_MIN_RATE", "16384"), integer("bytes per second", 0, 1<<30, func(c *Config) *int { return &c.StagingMinRate }),
		"Minimum rate of a peer's connection that holds staging memory while others wait for some. The engine closes a slower one. 0: none."},
	{one("KVFERRY_TCP_CONGESTION", ""), text(func(c *Config) *string { return &c.Congestion }),
		"Congestion control of data connections, one of `sysctl net.ipv4.tcp_allowed_congestion_control`. Where it is not set or not allowed, the system's default applies. Each engine's setting applies to the data that this engine sends."},
	{one("KVFERRY_SAME_HOST", "1"), onOff(func(c *Config) *bool { return &c.SameHost }),
		"Off, or with `MC_FORCE_TCP`: engines on the same host use TCP between them, instead of reading each other's memory."},
	{one("KVFERRY_POLL_US", "0"), microseconds(0, 1000000, func(c *Config) *time.Duration { return &c.Polling }),
		"How long a thread polls for an answer, or for the next request, before it sleeps. A large value lowers latency and keeps processors busy. 0: some 150 to 200 µs, and only where that mostly succeeds."},
	{one("KVFERRY_MAX_SESSIONS", "1024"), integer("connections", 1, 65536, func(c *Config) *int { return &c.MaxSessions }),
		"Maximum number of data connections that the engine serves at once; fewer where the limit of open files is below eight times as many, since a quarter of it is for these connections, and each takes up to two. One address has three quarters of them at most. When all are taken, connections without a valid request and then idle ones give way to new ones, or these wait."},
	{one("KVFERRY_FIRST_REQUEST_TIMEOUT_SEC", "10"), seconds(1, math.MaxInt32, func(c *Config) *time.Duration { return &c.FirstRequestTimeout }),
		"How long a data connection may take to send its first valid request. The engine closes it then."},
	{one("KVFERRY_MAX_HANDSHAKES", "128"), integer("connections", 1, 65536, func(c *Config) *int { return &c.MaxHandshakes }),
		"Maximum number of handshake connections that are open at once; fewer where the limit of open files is below eight times as many. One address has at most half of them. When they are taken, a further one takes the place of an older one: of the address with the most connections, and of one without a request first."},
	{[]variable{{"MC_HANDSHAKE_MAX_NOTIFY_ENTRIES", "KVFERRY_MAX_NOTIFICATIONS", "65536"}}, integer("messages", 1, 1<<24, func(c *Config) *int { return &c.MaxNotifications }),
		"Maximum number of notifications that the engine keeps until the program fetches them. It refuses further ones, and their senders get an error. Mooncake drops the oldest ones."},
	{one("KVFERRY_NOTIFY_BYTES", "67108864"), integer("bytes", 1<<20, 1<<40, func(c *Config) *int { return &c.MaxNotifyBytes }),
		"Memory for notifications that the program has not fetched yet, and as much again for those that are arriving. The peers of one address have at most half of it, which also limits the length of one notification. The engine refuses further ones, and their senders get an error."},
}

// one is a setting's only variable.
func one(name, unset string) []variable { return []variable{{name: name, unset: unset}} }
