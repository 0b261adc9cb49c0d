package client

import (
	"slices"
	"testing"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/tcp/internal/tcptest"
	"kvferry/tcp/wire"

	"github.com/stretchr/testify/require"
)

// only is the access that allows nothing but such requests.
func only(op core.Opcode) metadata.Access {
	if op == core.Read {
		return metadata.ReadOnly
	}
	return metadata.WriteOnly
}

// allowOnly has the peer show its memory for such requests alone.
func allowOnly(p *tcptest.Scripted, op core.Opcode) {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	p.Shown.Buffers = slices.Clone(p.Shown.Buffers) // it may just be sent
	for i := range p.Shown.Buffers {
		p.Shown.Buffers[i].Access = only(op)
	}
}

func opposite(op core.Opcode) core.Opcode { return core.Write - op }

func TestARequestThatTheDescriptorForbidsIsNotSent(t *testing.T) {
	for _, way := range tcptest.Ways {
		for _, op := range tcptest.Opcodes {
			t.Run(way.Name+" "+op.String(), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
				version := 2
				if way.Name == "version 1" {
					version = 1
				}
				p := tcptest.Perform(t, version, tcptest.ServeWell, far)
				allowOnly(p, opposite(op))
				e := newEngine(t, way.Config)
				id := tcptest.OpenSegment(t, e, p.Name)
				b := tcptest.Submit(t, e, tcptest.Ask(op, near, id, far))
				tcptest.FailsOnly(t, b, 0)
				require.ErrorIs(t, b.Err(), core.ErrForbidden)
				require.ErrorContains(t, b.Err(), p.Name)
				require.Empty(t, p.Requests())

				allowOnly(p, op) // it is registered again
				if version == 2 {
					tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(op, near, id, far)))
					require.Len(t, p.Requests(), 1)
				}
			})
		}
	}
}

// A descriptor does not say it where its list of buffers is cut short.
func TestAPeerThatForbidsARequestIsToldOfInItsError(t *testing.T) {
	for _, way := range tcptest.Ways[:2] {
		for _, op := range tcptest.Opcodes {
			t.Run(way.Name+" "+op.String(), func(t *testing.T) {
				near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
				p := tcptest.Perform(t, 2, func(v *tcptest.Visitor, _ int) {
					var h wire.Header
					if v.Header(&h) {
						v.Refuse(wire.StatusForbidden)
					}
				}, far)
				e := newEngine(t, way.Config)
				b := tcptest.Submit(t, e, tcptest.Ask(op, near, tcptest.OpenSegment(t, e, p.Name), far))
				tcptest.FailsOnly(t, b, 0)
				require.ErrorIs(t, b.Err(), core.ErrForbidden)
				require.ErrorContains(t, b.Err(), "does not let peers "+op.Verb()+" it")
				require.Len(t, p.Requests(), 2, "once more with the new descriptor")
			})
		}
	}
}

func TestARequestThatWasForbiddenAndIsAllowedNowIsSentOnceMore(t *testing.T) {
	for _, op := range tcptest.Opcodes {
		near, far := tcptest.Mapped(t, 4096), tcptest.Mapped(t, 4096)
		p := tcptest.Perform(t, 2, tcptest.AtFirst(1, func(v *tcptest.Visitor, _ int) {
			var h wire.Header
			if v.Header(&h) {
				v.Refuse(wire.StatusForbidden)
			}
		}), far)
		e := newEngine(t)
		tcptest.Completes(t, tcptest.Submit(t, e, tcptest.Ask(op, near, tcptest.OpenSegment(t, e, p.Name), far)))
		require.Len(t, p.Requests(), 2)
	}
}
