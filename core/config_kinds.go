package core

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode"

	"kvferry/core/staging"
)

// The kinds of settings: what a text may be, and which field of Config it sets.

// single is a kind with one variable.
func single(accepts string, parse func(c *Config, text string) error) kind {
	return kind{accepts: accepts, parse: func(c *Config, texts []string) error { return parse(c, texts[0]) }}
}

// presence is on when the variable is set, to any value.
func presence(field func(*Config) *bool) kind {
	return single("set or not", func(c *Config, text string) error {
		*field(c) = text != notSet
		return nil
	})
}

// exactlyOne is on when the variable is "1"; every other value is legal, and off.
func exactlyOne(field func(*Config) *bool) kind {
	return single("`1` or anything else", func(c *Config, text string) error {
		*field(c) = text == "1"
		return nil
	})
}

func onOff(field func(*Config) *bool) kind {
	return single("`1`, `true`, `yes`, `on`, `0`, `false`, `no`, `off`", func(c *Config, text string) error {
		switch strings.ToLower(text) {
		case "1", "true", "yes", "on":
			*field(c) = true
		case "0", "false", "no", "off":
			*field(c) = false
		default:
			return errors.New("it is neither on nor off")
		}
		return nil
	})
}

func level() kind {
	return single("`TRACE`, `INFO`, `WARNING`, `ERROR`", func(c *Config, text string) error {
		c.LogLevel = strings.ToUpper(text)
		if _, ok := logLevels[c.LogLevel]; !ok {
			return errors.New("it is none of TRACE, INFO, WARNING, ERROR")
		}
		return nil
	})
}

func copying(field func(*Config) *staging.Copying) kind {
	return single("`auto`, `default`, `single`, `batch`, `gather`, `kernel`, `matrix`", func(c *Config, text string) (err error) {
		*field(c), err = staging.ParseCopying(text)
		return err
	})
}

func text(field func(*Config) *string) kind {
	return single("text", func(c *Config, text string) error {
		*field(c) = text
		return printable(text)
	})
}

// ownFolder is the folder of exporter.AttachPrivately.
func ownFolder(field func(*Config) *string) kind {
	return single("`auto`, `off`, an absolute path", func(c *Config, text string) error {
		*field(c) = text
		if text != "auto" && text != "off" && !strings.HasPrefix(text, "/") {
			return errors.New("it is neither auto, off nor an absolute path")
		}
		return printable(text)
	})
}

// strict is text that an engine checks when it starts. It does not start with a wrong one: with a default in its place, peers that
// the setting keeps out could connect.
func strict(accepts string, field func(*Config) *string) kind {
	return single(accepts, func(c *Config, text string) error {
		*field(c) = text
		return nil
	})
}

func secret(field func(*Config) *Secret) kind {
	k := single("text", func(c *Config, text string) error {
		*field(c) = Secret(text)
		return printable(text)
	})
	k.secret = true
	return k
}

// printable refuses characters that would end a line of a protocol or of a log.
func printable(text string) error {
	if strings.ContainsFunc(text, unicode.IsControl) {
		return errors.New("it has control characters in it")
	}
	return nil
}

func integer(unit string, least, most int, field func(*Config) *int) kind {
	accepts := fmt.Sprintf("%d–%d", least, most)
	if unit != "" {
		accepts = unit + ", " + accepts
	}
	return single(accepts, func(c *Config, text string) (err error) {
		*field(c), err = parseInteger(text, least, most)
		return err
	})
}

func parseInteger(text string, least, most int) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if errors.Is(err, strconv.ErrSyntax) {
		return 0, fmt.Errorf("%q is not a whole number", text)
	}
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%s is outside %d–%d", strings.TrimSpace(text), least, most)
	}
	return n, nil
}

// multiple is a number of bytes that is a multiple of unit.
func multiple(unit, most int, field func(*Config) *int) kind {
	return single(fmt.Sprintf("bytes, %d–%d, a multiple of %d", unit, most, unit), func(c *Config, text string) (err error) {
		if *field(c), err = parseInteger(text, unit, most); err == nil && *field(c)%unit != 0 {
			err = fmt.Errorf("%d is not a multiple of %d", *field(c), unit)
		}
		return err
	})
}

// ignored is a setting of Mooncake that has no effect here, and may have any value.
func ignored() kind {
	return single("anything", func(*Config, string) error { return nil })
}

// unused is a setting of Mooncake that has no effect here. Its value is checked nevertheless.
func unused(least, most int) kind {
	return integer("", least, most, func(*Config) *int { return new(int) })
}

func seconds(least, most int, field func(*Config) *time.Duration) kind {
	return duration("seconds", time.Second, least, most, field)
}

func milliseconds(least, most int, field func(*Config) *time.Duration) kind {
	return duration("milliseconds", time.Millisecond, least, most, field)
}

func microseconds(least, most int, field func(*Config) *time.Duration) kind {
	return duration("microseconds", time.Microsecond, least, most, field)
}

func duration(name string, unit time.Duration, least, most int, field func(*Config) *time.Duration) kind {
	return single(fmt.Sprintf("%s, %d–%d", name, least, most), func(c *Config, text string) error {
		n, err := parseInteger(text, least, most)
		*field(c) = time.Duration(n) * unit
		return err
	})
}

// usualLanes stands for the number that lanes chooses. One lane carries about 4 GB/s, and keeps a processor busy at both ends. A
// link between hosts is slower: there more lanes than processors only share its throughput. A peer counts as behind such a link
// until a lane is connected to it, and from a round trip of 300 us on (tcp/client/dispatch.go).
const usualLanes = "4; with 16 processors or more, 8; over a link 3 with 3 processors, 2 with fewer"

func lanes() kind {
	given := integer("connections", 1, 16, func(c *Config) *int { return &c.LanesPerPeer })
	return single(given.accepts, func(c *Config, text string) error {
		if text != usualLanes {
			err := given.parse(c, []string{text})
			c.LanesPerLink = c.LanesPerPeer
			return err
		}
		processors := runtime.GOMAXPROCS(0)
		if c.LanesPerPeer = 4; processors >= 16 {
			c.LanesPerPeer = 8
		}
		c.LanesPerLink = min(c.LanesPerPeer, max(2, processors))
		return nil
	})
}

// ascendTimeout stands for the value that an earlier row of the table has set.
const ascendTimeout = "ASCEND_TRANSFER_TIMEOUT, or 30"

// transferTimeout is never shorter than five seconds.
func transferTimeout() kind {
	given := seconds(1, math.MaxInt32, func(c *Config) *time.Duration { return &c.TransferTimeout })
	return single(given.accepts, func(c *Config, text string) error {
		if text == ascendTimeout {
			return nil
		}
		var own Config
		err := given.parse(&own, []string{text})
		if err == nil {
			c.TransferTimeout = max(own.TransferTimeout, 5*time.Second)
		}
		return err
	})
}

const (
	leastPort          = 1024
	leastEphemeralPort = 32768
	mostEphemeralPort  = 60999
	mostPort           = 65535
)

// portRange is two ports outside the range of ephemeral ports, which the system gives out itself.
func portRange() kind {
	accepts := fmt.Sprintf("%d–%d without %d–%d, the first not above the second",
		leastPort, mostPort, leastEphemeralPort, mostEphemeralPort)
	return kind{accepts: accepts, parse: func(c *Config, texts []string) (err error) {
		if c.MinPort, err = parsePort(texts[0]); err != nil {
			return err
		}
		if c.MaxPort, err = parsePort(texts[1]); err != nil {
			return err
		}
		if c.MinPort > c.MaxPort {
			return fmt.Errorf("%d is above %d", c.MinPort, c.MaxPort)
		}
		return nil
	}}
}

func parsePort(text string) (int, error) {
	port, err := parseInteger(text, leastPort, mostPort)
	if err != nil {
		return 0, err
	}
	if port >= leastEphemeralPort && port <= mostEphemeralPort {
		return 0, fmt.Errorf("%d is among the ephemeral ports %d–%d", port, leastEphemeralPort, mostEphemeralPort)
	}
	return port, nil
}
