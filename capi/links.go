package main

// #include "internal.h"
import "C"

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"unsafe"

	"kvferry/core"
	"kvferry/core/status"
)

//export kvferry_go_show_links
func kvferry_go_show_links(engine unsafe.Pointer, out *C.char, size C.size_t, asJSON C.int, reason *C.char) C.int {
	return negatedLogged("showLinks", engine, reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		if out == nil || size == 0 {
			return status.Errorf(status.InvalidArgument, "there is no room for the links of %s", e.Name())
		}
		r := newLinkReport(e)
		text := r.table()
		if asJSON != 0 {
			if text, err = r.json(); err != nil {
				return err
			}
		}
		writeText(out, size, text)
		return nil
	})
}

//export kvferry_go_nic_load
func kvferry_go_nic_load(engine unsafe.Pointer, stats *C.nic_load_stat_t, count *C.size_t, reason *C.char) C.int {
	return negatedLogged("getNicLoadStats", engine, reason, func() error {
		if stats == nil || count == nil {
			return status.Errorf(status.InvalidArgument, "there is no room for load figures: NULL")
		}
		if _, err := engineOf(engine); err != nil {
			return err
		}
		*count = 0 // there are no RDMA devices
		return nil
	})
}

// linkReport is the result of showLinks. The first two keys are Mooncake's and list RDMA devices, of which there are none.
type linkReport struct {
	LocalNICs []struct{}             `json:"local_nics"`
	Topology  map[string][2][]string `json:"topology"` // location -> preferred and available RDMA devices
	Engine    string                 `json:"engine"`
	Links     []core.Link            `json:"links"`
}

func newLinkReport(e *core.Engine) *linkReport {
	r := &linkReport{LocalNICs: []struct{}{}, Topology: map[string][2][]string{}, Engine: e.Name(), Links: e.Links()}
	if r.Links == nil {
		r.Links = []core.Link{}
	}
	for _, location := range cpuLocations() {
		r.Topology[location] = [2][]string{{}, {}}
	}
	return r
}

// cpuLocations names the machine's memory nodes, as "cpu:0".
func cpuLocations() []string {
	nodes, err := filepath.Glob("/sys/devices/system/node/node[0-9]*")
	if err != nil || len(nodes) == 0 {
		return []string{"cpu:0"}
	}
	for i, node := range nodes {
		nodes[i] = "cpu:" + strings.TrimPrefix(filepath.Base(node), "node")
	}
	return nodes
}

func (r *linkReport) json() (string, error) {
	text, err := json.MarshalIndent(r, "", "  ")
	return string(text) + "\n", err
}

func (r *linkReport) table() string {
	var text strings.Builder
	fmt.Fprintf(&text, "=== Local NICs ===\n  (no RDMA devices)\n\n=== Links of %s ===\n", r.Engine)
	if len(r.Links) == 0 {
		text.WriteString("  (none)\n")
		return text.String()
	}
	columns := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(columns, "  peer\ttransport\tas\tconnections\tbytes out\tbytes in\terrors")
	for _, l := range r.Links {
		fmt.Fprintf(columns, "  %s\t%s\t%s\t%d\t%d\t%d\t%d\n",
			l.Peer, l.Transport, l.Direction, l.Connections, l.BytesOut, l.BytesIn, l.Errors)
	}
	columns.Flush()
	return text.String()
}
