package exporter

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"kvferry/core/metrics"
)

// contentType is that of Prometheus' text format.
const contentType = "text/plain; version=0.0.4; charset=utf-8"

// text is the metrics of the engines of the process in Prometheus' text format. No two engines have one name.
func text(engines []*metrics.Stats) []byte {
	var out bytes.Buffer
	for i := range families {
		f := &families[i]
		from := engines
		if f.ofProcess {
			from = engines[:min(len(engines), 1)]
		}
		begun := false
		for _, s := range from {
			f.each(s, func(value any, labels ...string) {
				if !begun {
					begun = true
					fmt.Fprintf(&out, "# HELP %s %s.\n# TYPE %s %s\n", f.name, helpText.Replace(f.help), f.name, f.kind)
				}
				f.write(&out, s.Engine, value, labels)
			})
		}
	}
	return out.Bytes()
}

// write writes a value, or the values of a histogram.
func (f *family) write(out *bytes.Buffer, engine string, value any, values []string) {
	var labels []string
	if !f.ofProcess {
		labels = append(labels, label("engine", engine))
	}
	for i, name := range f.labels {
		labels = append(labels, label(name, values[i]))
	}
	d, ok := value.(metrics.Durations)
	if !ok {
		line(out, f.name, labels, value)
		return
	}
	for _, b := range d.Buckets {
		bound := strconv.FormatFloat(b.Bound, 'g', -1, 64)
		line(out, f.name+"_bucket", append(slices.Clip(labels), label("le", bound)), b.Count)
	}
	line(out, f.name+"_bucket", append(slices.Clip(labels), label("le", "+Inf")), d.Count)
	line(out, f.name+"_sum", labels, d.Sum)
	line(out, f.name+"_count", labels, d.Count)
}

func line(out *bytes.Buffer, name string, labels []string, value any) {
	out.WriteString(name)
	if len(labels) > 0 {
		out.WriteString("{" + strings.Join(labels, ",") + "}")
	}
	fmt.Fprintf(out, " %v\n", value)
}

var (
	labelText = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	helpText  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
)

func label(name, value string) string {
	return name + `="` + labelText.Replace(strings.ToValidUTF8(value, "\uFFFD")) + `"`
}
