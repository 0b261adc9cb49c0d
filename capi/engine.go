package main

// #include "internal.h"
import "C"

import (
	"errors"
	"unsafe"

	"kvferry/ascend"
	"kvferry/core"
	"kvferry/core/device"
	"kvferry/core/status"
	"kvferry/cuda"
	"kvferry/tcp"

	"go.uber.org/zap"
)

//export kvferry_go_create
func kvferry_go_create(store, name, ignoredHost C.text_t, autoDiscover C.int, reason *C.char) (handle unsafe.Pointer) {
	runLogged("createTransferEngine", nil, reason, func() error {
		options, err := options(store, name, ignoredHost)
		if err != nil {
			return err
		}
		env, err := readEnvironment()
		if err != nil {
			return err
		}
		handle, err = create(env, options, autoDiscover != 0, false)
		return err
	})
	return handle
}

// options checks and copies the strings that an engine is made from.
func options(store, name, ignoredHost C.text_t) (o core.Options, err error) {
	if o.Metadata, err = readText("the metadata connection string", store); err != nil {
		return o, err
	}
	if o.Name, err = readText("the local server name", name); err != nil {
		return o, err
	}
	_, err = readText("ip_or_host_name", ignoredHost)
	return o, err
}

// create makes an engine with the settings of an environment, and its handle. asks: see engineHandle.
func create(env environment, o core.Options, install, asks bool) (unsafe.Pointer, error) {
	config, log, closeLog := env.settings()
	o.Config, o.Log = config, log
	o.Version, o.Changed = C.GoString(C.kvferry_version()), core.ChangedSettings(env.lookup)
	o.Runtimes = []device.Runtime{ascend.New(config.AscendCL, log), cuda.New(config.CUDA, log)}
	e, err := core.New(o)
	if err != nil {
		return nil, errors.Join(err, closeLog())
	}
	if install {
		if _, err := e.Install(tcpName, tcp.Open); err != nil {
			return nil, errors.Join(err, e.Close(), closeLog())
		}
	}
	h := &engineHandle{ended: make(chan struct{}), closeLog: closeLog, asks: asks, transports: map[string]unsafe.Pointer{}}
	h.hideMetrics = showMetrics(e)
	h.engine.Store(e)
	return handles.add(h), nil
}

// settings are what the environment sets, and the logger that they ask for.
func (env environment) settings() (config core.Config, log *zap.Logger, closeLog func() error) {
	config, warnings := core.LoadConfig(env.lookup)
	log, closeLog = core.NewLogger(config)
	for _, w := range warnings {
		log.Warn(w.String())
	}
	env.warnOfUnknown(log)
	return config, log, closeLog
}

//export kvferry_go_destroy
func kvferry_go_destroy(handle unsafe.Pointer, reason *C.char) C.int {
	return negated(reason, func() error { return destroy(handle) })
}

// kvferry_go_destroy_logged logs what was wrong with the handle. The engine has logged what else went wrong.
//
//export kvferry_go_destroy_logged
func kvferry_go_destroy_logged(handle unsafe.Pointer, reason *C.char) {
	if code := run(reason, func() error { return destroy(handle) }); code == status.InvalidArgument {
		logFailure(nil, "destroyTransferEngine", C.GoString(reason))
	}
}

func destroy(handle unsafe.Pointer) error {
	h, err := handleOf(handle)
	if err != nil {
		return err
	}
	return h.end(handle)
}

// tcpName is what the TCP transport is installed under.
const tcpName = "tcp"

//export kvferry_go_install
func kvferry_go_install(handle unsafe.Pointer, protocol C.text_t, reason *C.char) (transport unsafe.Pointer) {
	runLogged("installTransport", handle, reason, func() error {
		h, e, err := liveHandleOf(handle)
		if err != nil {
			return err
		}
		name, err := readText("the protocol", protocol)
		if err != nil {
			return err
		}
		if err := h.installNamed(e, name); err != nil {
			return err
		}
		transport = h.transport(tcpName)
		return nil
	})
	return transport
}

// installNamed installs the transport for a protocol.
func (h *engineHandle) installNamed(e *core.Engine, protocol string) error {
	if err := h.checkProtocol(e, protocol); err != nil {
		return err
	}
	_, err := e.Install(tcpName, tcp.Open)
	return err
}

// checkProtocol accepts the protocols that the TCP transport serves. With "ascend" it is an error if the library of the NPUs is not
// found. NPU memory can be registered with any protocol.
func (h *engineHandle) checkProtocol(e *core.Engine, name string) error {
	switch name {
	case tcpName:
		return nil
	case "rdma":
		h.noRDMAOnce.Do(func() {
			e.Log().Info(`kvferry has no RDMA: it serves the protocol "rdma" by TCP`, zap.String("engine", e.Name()))
		})
		return nil
	case "ascend":
		return e.RequireRuntime(ascend.Name)
	}
	return status.Errorf(status.NotSupportedTransport, "there is no transport %q", name)
}

// check is all that a function without effect does: it checks the engine, and that a string is not NULL.
func check(handle unsafe.Pointer, what string, text C.text_t) error {
	if _, err := engineOf(handle); err != nil {
		return err
	}
	_, err := readText(what, text)
	return err
}

//export kvferry_go_uninstall
func kvferry_go_uninstall(engine unsafe.Pointer, protocol C.text_t, reason *C.char) C.int {
	return negatedLogged("uninstallTransport", engine, reason, func() error { return check(engine, "the protocol", protocol) })
}

//export kvferry_go_warmup
func kvferry_go_warmup(engine unsafe.Pointer, segment C.text_t, reason *C.char) C.int {
	return negatedLogged("warmupEfaSegment", engine, reason, func() error { return check(engine, "the segment name", segment) })
}

//export kvferry_go_discover
func kvferry_go_discover(engine unsafe.Pointer, reason *C.char) C.int {
	return checkEngine("discoverTopology", engine, reason)
}

// checkEngine is all that a function without effect does: it checks the engine.
func checkEngine(function string, engine unsafe.Pointer, reason *C.char) C.int {
	return negatedLogged(function, engine, reason, func() error {
		_, err := engineOf(engine)
		return err
	})
}

//export kvferry_go_address
func kvferry_go_address(engine unsafe.Pointer, out *C.char, size C.size_t, reason *C.char) C.int {
	return negatedLogged("getLocalIpAndPort", engine, reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		if out == nil || size == 0 {
			return status.Errorf(status.InvalidArgument, "there is no room for the address of %s", e.Name())
		}
		writeText(out, size, e.Address())
		return nil
	})
}

//export kvferry_go_rpc_port
func kvferry_go_rpc_port(engine unsafe.Pointer, reason *C.char) (port C.int) {
	code := negated(reason, func() error {
		e, err := engineOf(engine)
		if err == nil {
			port = C.int(e.HandshakePort())
		}
		return err
	})
	return orCode(code, port)
}

//export kvferry_go_transfer_timeout_ms
func kvferry_go_transfer_timeout_ms(engine unsafe.Pointer, reason *C.char) (timeout C.int64_t) {
	code := negated(reason, func() error {
		e, err := engineOf(engine)
		if err == nil {
			timeout = C.int64_t(e.Config().TransferTimeout.Milliseconds())
		}
		return err
	})
	return orCode(code, timeout)
}
