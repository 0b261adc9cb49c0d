package exporter

import (
	"bytes"
	"fmt"
	"mime"
	"slices"
	"strconv"
	"strings"

	"kvferry/core/metrics"
)

// format is a text format.
type format struct {
	contentType string
	open        bool // OpenMetrics, which has exemplars
}

var (
	prometheusText = format{contentType: "text/plain; version=0.0.4; charset=utf-8"}
	openMetrics    = format{contentType: "application/openmetrics-text; version=1.0.0; charset=utf-8", open: true}
)

// formatFor is the format for a client that accepts what the headers say: OpenMetrics if it prefers that.
func formatFor(accept []string) format {
	open, plain := 0.0, 0.0
	for _, one := range strings.Split(strings.Join(accept, ","), ",") {
		kind, parameters, err := mime.ParseMediaType(one)
		if err != nil {
			continue
		}
		weight := 1.0
		if q, given := parameters["q"]; given {
			if weight, err = strconv.ParseFloat(q, 64); err != nil {
				continue
			}
		}
		switch kind {
		case "application/openmetrics-text":
			open = max(open, weight)
		case "text/plain":
			plain = max(plain, weight)
		}
	}
	if open > 0 && open >= plain {
		return openMetrics
	}
	return prometheusText
}

// text is the metrics of the engines of the process. No two engines have one name.
func text(engines []*metrics.Stats, as format) []byte {
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
					f.head(&out, as)
				}
				f.write(&out, as, s.Engine, value, labels)
			})
		}
	}
	if as.open {
		out.WriteString("# EOF\n")
	}
	return out.Bytes()
}

// head writes what the family is. OpenMetrics names a counter without the suffix of its values.
func (f *family) head(out *bytes.Buffer, as format) {
	name, help := f.name, helpText.Replace(f.help)
	if as.open {
		name, help = strings.TrimSuffix(name, "_total"), labelText.Replace(f.help)
	}
	fmt.Fprintf(out, "# HELP %s %s.\n# TYPE %s %s\n", name, help, name, f.kind)
}

// write writes a value, or the values of a histogram.
func (f *family) write(out *bytes.Buffer, as format, engine string, value any, values []string) {
	var labels []string
	if !f.ofProcess {
		labels = append(labels, label("engine", engine))
	}
	for i, name := range f.labels {
		labels = append(labels, label(name, values[i]))
	}
	d, ok := value.(metrics.Durations)
	if !ok {
		line(out, f.name, labels, value, "")
		return
	}
	for i := range len(d.Buckets) + 1 {
		bound, count := "+Inf", d.Count
		if i < len(d.Buckets) {
			bound, count = strconv.FormatFloat(d.Buckets[i].Bound, 'g', -1, 64), d.Buckets[i].Count
		}
		line(out, f.name+"_bucket", append(slices.Clip(labels), label("le", bound)), count, exemplar(&d, i, as))
	}
	line(out, f.name+"_sum", labels, d.Sum, "")
	line(out, f.name+"_count", labels, d.Count, "")
}

// exemplar is what follows the value of a bucket.
func exemplar(d *metrics.Durations, bucket int, as format) string {
	if !as.open || d.Exemplars == nil || d.Exemplars[bucket] == nil {
		return ""
	}
	x := d.Exemplars[bucket]
	return fmt.Sprintf(" # {%s} %s %.3f", label("trace_id", x.TraceID), strconv.FormatFloat(x.Value, 'g', -1, 64), x.At)
}

func line(out *bytes.Buffer, name string, labels []string, value any, after string) {
	out.WriteString(name)
	if len(labels) > 0 {
		out.WriteString("{" + strings.Join(labels, ",") + "}")
	}
	fmt.Fprintf(out, " %v%s\n", value, after)
}

var (
	labelText = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	helpText  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
)

func label(name, value string) string {
	return name + `="` + labelText.Replace(strings.ToValidUTF8(value, "\uFFFD")) + `"`
}
