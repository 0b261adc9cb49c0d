package exporter

import (
	"kvferry/core/metrics"
)

// family is the metrics of one name: a row of the table that is written for Prometheus, and in the guide for operators.
type family struct {
	name   string
	kind   string   // counter, gauge or histogram
	labels []string // beside "engine"
	help   string
	each   func(s *metrics.Stats, give give)

	ofProcess bool // one for all engines of the process, and without the label "engine"
}

// give takes a value with its labels: a number, or metrics.Durations.
type give func(value any, labels ...string)

// The engine's own totals.
var families = []family{
	{"kvferry_engine_info", "gauge", []string{"identity", "version"}, "1, for each engine", func(s *metrics.Stats, give give) {
		give(1, s.Identity, s.Version)
	}, false},
	{"kvferry_engine_uptime_seconds", "gauge", nil, "Time since the engine was made", func(s *metrics.Stats, give give) {
		give(s.Uptime)
	}, false},
	{"kvferry_batch_duration_seconds", "histogram", []string{"operation"}, "Time from the submission of a batch to its end, failed ones included. operation is read, write, or mixed", func(s *metrics.Stats, give give) {
		for _, op := range []metrics.Operation{metrics.Read, metrics.Write, metrics.Mixed} {
			give(s.Batches[op.String()], op.String())
		}
	}, false},
	{"kvferry_batches_failed_total", "counter", nil, "Batches in which a request failed", func(s *metrics.Stats, give give) {
		give(s.FailedBatches)
	}, false},
	{"kvferry_requests_total", "counter", []string{"operation"}, "Requests of this engine that have completed, counted when their batch ends", func(s *metrics.Stats, give give) {
		eachOperation(give, func(op string) uint64 { return s.Requests[op] })
	}, false},
	{"kvferry_request_bytes_total", "counter", []string{"operation"}, "Payload of these requests", func(s *metrics.Stats, give give) {
		eachOperation(give, func(op string) uint64 { return s.Bytes[op] })
	}, false},
	{"kvferry_request_failures_total", "counter", []string{"reason"}, "Requests of this engine that have failed. The reasons are listed below", func(s *metrics.Stats, give give) {
		for _, r := range metrics.Reasons() {
			give(s.Failures[r.String()], r.String())
		}
	}, false},
	{"kvferry_batches_in_flight", "gauge", nil, "Batches that have not ended", func(s *metrics.Stats, give give) {
		give(s.Unfinished.Batches)
	}, false},
	{"kvferry_requests_in_flight", "gauge", nil, "Requests that have not ended", func(s *metrics.Stats, give give) {
		give(s.Unfinished.Requests)
	}, false},
	{"kvferry_bytes_in_flight", "gauge", nil, "Bytes of these requests that have not arrived yet", func(s *metrics.Stats, give give) {
		give(s.Unfinished.Bytes)
	}, false},

	// By peer.
	{"kvferry_peer_requests_total", "counter", []string{"peer", "operation"}, "Requests of this engine that have completed, by the peer whose memory they read or wrote. The peer local is the engine's own memory", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		give(p.Read.Requests, p.Peer, "read")
		give(p.Write.Requests, p.Peer, "write")
	}), false},
	{"kvferry_peer_bytes_total", "counter", []string{"peer", "operation", "path"}, "Payload that was read from and written to peers. path is tcp, host (copied from the memory of a process on the same host), or local (within the process)", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		eachPath(p.Peer, "read", p.Read, give)
		eachPath(p.Peer, "write", p.Write, give)
	}), false},
	{"kvferry_peer_request_failures_total", "counter", []string{"peer", "reason"}, "Requests of this engine that have failed, by peer. A reason that has not occurred is left out", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		for _, r := range metrics.Reasons() {
			if n := p.Failures[r.String()]; n > 0 {
				give(n, p.Peer, r.String())
			}
		}
	}), false},
	{"kvferry_peer_retries_total", "counter", []string{"peer"}, "Ranges that were sent again because their connection broke", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		give(p.Retries, p.Peer)
	}), false},
	{"kvferry_peer_refusals_total", "counter", []string{"peer"}, "Ranges that the peer refused. They are asked for once more after its descriptor was fetched again", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		give(p.Refusals, p.Peer)
	}), false},
	{"kvferry_peer_connections", "gauge", []string{"peer", "state"}, "Data connections to the peer: connecting, idle, busy, or ending (they wait for a page of memory, or are being closed)", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		give(p.Connections.Connecting, p.Peer, "connecting")
		give(p.Connections.Idle, p.Peer, "idle")
		give(p.Connections.Busy, p.Peer, "busy")
		give(p.Connections.Ending, p.Peer, "ending")
	}), false},
	{"kvferry_peer_connections_opened_total", "counter", []string{"peer"}, "Data connections to the peer that came up", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		give(p.Connected, p.Peer)
	}), false},
	{"kvferry_peer_connections_lost_total", "counter", []string{"peer"}, "Data connections to the peer that were lost. A peer that closes an idle one is not counted", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		give(p.Lost, p.Peer)
	}), false},
	{"kvferry_peer_connect_failures_total", "counter", []string{"peer"}, "Attempts to connect to the peer that failed", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		give(p.Unreachable, p.Peer)
	}), false},
	{"kvferry_peer_queued_bytes", "gauge", []string{"peer"}, "Bytes that wait to be sent, or asked for", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		give(p.Queued, p.Peer)
	}), false},
	{"kvferry_peer_in_flight_bytes", "gauge", []string{"peer"}, "Bytes that were sent, or asked for, and not acknowledged yet", eachPeer(func(p *metrics.InitiatorPeer, give give) {
		give(p.InFlight, p.Peer)
	}), false},

	// As the target.
	{"kvferry_target_requests_total", "counter", []string{"peer", "operation"}, "Requests of peers that this engine has served, by the peer's host. It does not see the READs of a process on the same host", eachHost(func(h *metrics.TargetPeer, give give) {
		give(h.Read.Requests, h.Peer, "read")
		give(h.Write.Requests, h.Peer, "write")
	}), false},
	{"kvferry_target_bytes_total", "counter", []string{"peer", "operation", "path"}, "Payload of these requests", eachHost(func(h *metrics.TargetPeer, give give) {
		eachPath(h.Peer, "read", h.Read, give)
		eachPath(h.Peer, "write", h.Write, give)
	}), false},
	{"kvferry_target_refusals_total", "counter", []string{"peer"}, "Connections of peers that ended because a request was refused", eachHost(func(h *metrics.TargetPeer, give give) {
		give(h.Refusals, h.Peer)
	}), false},
	{"kvferry_target_connections_lost_total", "counter", []string{"peer"}, "Connections of peers that ended in an error, those of refused requests included", eachHost(func(h *metrics.TargetPeer, give give) {
		give(h.Lost, h.Peer)
	}), false},
	{"kvferry_target_connections", "gauge", []string{"peer"}, "Connections of peers", eachHost(func(h *metrics.TargetPeer, give give) {
		give(h.Connections, h.Peer)
	}), false},
	{"kvferry_sessions", "gauge", nil, "Places of data connections of peers that are taken", func(s *metrics.Stats, give give) { give(s.Sessions.Open) }, false},
	{"kvferry_sessions_limit", "gauge", nil, "Places that there are", func(s *metrics.Stats, give give) { give(s.Sessions.Limit) }, false},
	{"kvferry_sessions_waiting", "gauge", nil, "Connections that wait for a place", func(s *metrics.Stats, give give) { give(s.Sessions.Waiting) }, false},
	{"kvferry_sessions_served_total", "counter", nil, "Connections of peers that were served", func(s *metrics.Stats, give give) { give(s.Sessions.Served) }, false},
	{"kvferry_sessions_gave_way_total", "counter", nil, "Silent or idle connections that gave way to others", func(s *metrics.Stats, give give) { give(s.Sessions.GaveWay) }, false},
	{"kvferry_sessions_refused_total", "counter", []string{"reason"}, "Connections that were not served: full (they found no place), failed (they ended before a request, for example in TLS), or foreign (of another user of this host)", func(s *metrics.Stats, give give) {
		give(s.Sessions.Refused, "full")
		give(s.Sessions.Failed, "failed")
		give(s.Sessions.Foreign, "foreign")
	}, false},

	// Beside the data.
	{"kvferry_handshake_connections", "gauge", nil, "Connections at the handshake port", func(s *metrics.Stats, give give) { give(s.Handshakes.Open) }, false},
	{"kvferry_handshake_connections_limit", "gauge", nil, "How many there may be", func(s *metrics.Stats, give give) { give(s.Handshakes.Limit) }, false},
	{"kvferry_handshakes_answered_total", "counter", []string{"request"}, "Requests at the handshake port that were answered: connection, metadata, notify, or probe", func(s *metrics.Stats, give give) {
		for _, kind := range []string{"connection", "metadata", "notify", "probe"} {
			give(s.Handshakes.Answered[kind], kind)
		}
	}, false},
	{"kvferry_handshakes_gave_way_total", "counter", nil, "Connections at the handshake port that gave way to others", func(s *metrics.Stats, give give) { give(s.Handshakes.GaveWay) }, false},
	{"kvferry_handshakes_refused_total", "counter", []string{"reason"}, "Connections at the handshake port that got no answer, or a refusal: full (no place), plain (without TLS), or failed", func(s *metrics.Stats, give give) {
		give(s.Handshakes.Refused, "full")
		give(s.Handshakes.Plain, "plain")
		give(s.Handshakes.Failed, "failed")
	}, false},
	{"kvferry_notifications_sent_total", "counter", nil, "Notifications that their receivers accepted", func(s *metrics.Stats, give give) { give(s.Notifications.Sent) }, false},
	{"kvferry_notifications_send_failures_total", "counter", nil, "Notifications that could not be delivered", func(s *metrics.Stats, give give) { give(s.Notifications.SendFailures) }, false},
	{"kvferry_notifications_received_total", "counter", nil, "Notifications of peers that were accepted", func(s *metrics.Stats, give give) { give(s.Notifications.Received) }, false},
	{"kvferry_notifications_refused_total", "counter", nil, "Notifications of peers for which there was no room", func(s *metrics.Stats, give give) { give(s.Notifications.Refused) }, false},
	{"kvferry_notifications_waiting", "gauge", nil, "Notifications that the program has not fetched yet", func(s *metrics.Stats, give give) { give(s.Notifications.Waiting) }, false},
	{"kvferry_notifications_waiting_bytes", "gauge", nil, "Memory of these", func(s *metrics.Stats, give give) { give(s.Notifications.WaitingBytes) }, false},
	{"kvferry_metadata_request_duration_seconds", "histogram", []string{"request"}, "Requests to the metadata store, or in P2P mode to peers: fetch (a descriptor), publish, or address (of a handshake port)", func(s *metrics.Stats, give give) {
		for _, request := range []string{"address", "fetch", "publish"} {
			give(s.Metadata[request].Durations, request)
		}
	}, false},
	{"kvferry_metadata_request_failures_total", "counter", []string{"request"}, "Those that failed", func(s *metrics.Stats, give give) {
		for _, request := range []string{"address", "fetch", "publish"} {
			give(s.Metadata[request].Failures, request)
		}
	}, false},
	{"kvferry_security_refused_peers_total", "counter", nil, "Peers that were refused for what they presented: another secret, or a certificate that is not accepted", func(s *metrics.Stats, give give) { give(s.Security.Refused) }, false},
	{"kvferry_security_failures_total", "counter", []string{"peer", "reason"}, "Failures to prove who a peer or this engine is, by the peer's address. The reasons are listed below; one that has not occurred is left out", func(s *metrics.Stats, give give) {
		for _, f := range s.Security.Failures {
			give(f.Count, f.Peer, f.Reason)
		}
	}, false},
	{"kvferry_connections_not_allowed_total", "counter", nil, "Connections at both ports that were refused because KVFERRY_ALLOW does not have their address", func(s *metrics.Stats, give give) { give(s.Security.NotAllowed) }, false},
	{"kvferry_security_older_secret_peers_total", "counter", nil, "Peers that were accepted by another secret than the first one of the file: the rotation of secrets has not ended", func(s *metrics.Stats, give give) { give(s.Security.Older) }, false},
	{"kvferry_security_reloads_total", "counter", []string{"result"}, "Changed files with secrets or certificates: taken, or failed", func(s *metrics.Stats, give give) {
		give(s.Security.Reloads, "taken")
		give(s.Security.FailedReloads, "failed")
	}, false},

	// Device memory.
	{"kvferry_staging_pool_bytes", "gauge", []string{"device", "direction"}, "Page-locked memory for device memory. direction is out (from the device), in, or direct (from a device to this one, past that memory)", eachStaging(func(s *metrics.Staging) any { return s.Pool }), false},
	{"kvferry_staging_leased_bytes", "gauge", []string{"device", "direction"}, "The part of it that is in use", eachStaging(func(s *metrics.Staging) any { return s.Leased }), false},
	{"kvferry_staging_waits_total", "counter", []string{"device", "direction"}, "How often a transfer had to wait for a part of it", eachStaging(func(s *metrics.Staging) any { return s.Waits }), false},
	{"kvferry_staging_jobs_total", "counter", []string{"device", "direction"}, "Sets of copies that were done", eachStaging(func(s *metrics.Staging) any { return s.Jobs }), false},
	{"kvferry_staging_failed_jobs_total", "counter", []string{"device", "direction"}, "Sets of copies that failed", eachStaging(func(s *metrics.Staging) any { return s.Failed }), false},
	{"kvferry_staging_copied_bytes_total", "counter", []string{"device", "direction"}, "Bytes of the copies that were done", eachStaging(func(s *metrics.Staging) any { return s.Bytes }), false},
	{"kvferry_staging_copy_seconds_total", "counter", []string{"device", "direction"}, "Time that these sets took, each from its first copy to its end", eachStaging(func(s *metrics.Staging) any { return s.Copying }), false},

	// The process.
	{"kvferry_log_lines_dropped_total", "counter", nil, "Lines of the library's log that could not be written", func(s *metrics.Stats, give give) { give(s.Process.DroppedLogLines) }, true},
	{"kvferry_process_threads", "gauge", nil, "Threads of the process", func(s *metrics.Stats, give give) { give(s.Process.Threads) }, true},
	{"go_goroutines", "gauge", nil, "Goroutines of the library", func(s *metrics.Stats, give give) { give(s.Process.Goroutines) }, true},
	{"go_memstats_heap_alloc_bytes", "gauge", nil, "Memory of the library's objects", func(s *metrics.Stats, give give) { give(s.Process.HeapBytes) }, true},
	{"process_open_fds", "gauge", nil, "Open file descriptors of the process", func(s *metrics.Stats, give give) { give(s.Process.OpenFiles) }, true},
	{"process_max_fds", "gauge", nil, "How many the process may have", func(s *metrics.Stats, give give) { give(s.Process.MaxFiles) }, true},
	{"process_resident_memory_bytes", "gauge", nil, "Memory of the process that is in use", func(s *metrics.Stats, give give) { give(s.Process.ResidentBytes) }, true},
}

func eachOperation(give give, value func(operation string) uint64) {
	for _, op := range metrics.Operations {
		give(value(op.String()), op.String())
	}
}

func eachPath(peer, operation string, m metrics.Moved, give give) {
	for _, p := range metrics.Paths {
		if n := m.Bytes[p.String()]; n > 0 || p == metrics.TCP {
			give(n, peer, operation, p.String())
		}
	}
}

func eachPeer(f func(*metrics.InitiatorPeer, give)) func(*metrics.Stats, give) {
	return func(s *metrics.Stats, give give) {
		for i := range s.Initiator {
			f(&s.Initiator[i], give)
		}
	}
}

func eachHost(f func(*metrics.TargetPeer, give)) func(*metrics.Stats, give) {
	return func(s *metrics.Stats, give give) {
		for i := range s.Target {
			f(&s.Target[i], give)
		}
	}
}

func eachStaging(value func(*metrics.Staging) any) func(*metrics.Stats, give) {
	return func(s *metrics.Stats, give give) {
		for i := range s.Staging {
			give(value(&s.Staging[i]), s.Staging[i].Device, s.Staging[i].Direction)
		}
	}
}
