package main

// #include "internal.h"
import "C"

import (
	"math"
	"unsafe"

	"kvferry/core"
	"kvferry/core/metadata"
	"kvferry/core/status"
)

// readMessage copies a message from C.
func readMessage(name, text *C.char) (*metadata.Notification, error) {
	n, err := readText("the notification's name", name)
	if err != nil {
		return nil, err
	}
	t, err := readText("the notification's message", text)
	if err != nil {
		return nil, err
	}
	return &metadata.Notification{Name: n, Text: t}, nil
}

//export kvferry_go_send_notification
func kvferry_go_send_notification(engine unsafe.Pointer, target C.uint64_t, name, text *C.char, reason *C.char) C.int {
	return negatedLogged("genNotifyInEngine", engine, reason, func() error {
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		message, err := readMessage(name, text)
		if err != nil {
			return err
		}
		if target > math.MaxInt32 {
			return status.Errorf(status.Metadata, "segment %d is not open", int64(target))
		}
		return e.Notify(core.SegmentID(target), *message)
	})
}

//export kvferry_go_take_notifications
func kvferry_go_take_notifications(engine unsafe.Pointer, list **C.notify_msg_t, size *C.int, reason *C.char) C.int {
	return negatedLogged("getNotifsFromEngine", engine, reason, func() error {
		if size == nil {
			return status.Errorf(status.InvalidArgument, "size is NULL")
		}
		e, err := engineOf(engine)
		if err != nil {
			return err
		}
		messages := e.Notifications()
		*list = writeMessages(messages)
		*size = C.int(len(messages))
		return nil
	})
}

//export kvferry_go_free_notifications
func kvferry_go_free_notifications(list *C.notify_msg_t, size C.int, reason *C.char) C.int {
	return negatedLogged("freeNotifsMsgBuf", nil, reason, func() error {
		if size < 0 || list == nil && size > 0 {
			return status.Errorf(status.InvalidArgument, "%d notifications at %p cannot be freed", int(size), list)
		}
		for _, m := range unsafe.Slice(list, int(size)) {
			C.free(unsafe.Pointer(m.name))
			C.free(unsafe.Pointer(m.msg))
		}
		C.free(unsafe.Pointer(list))
		return nil
	})
}

// writeMessages copies messages into memory from malloc, which freeNotifsMsgBuf gives back. NULL for none.
func writeMessages(messages []metadata.Notification) *C.notify_msg_t {
	if len(messages) == 0 {
		return nil
	}
	list := (*C.notify_msg_t)(C.malloc(C.size_t(len(messages)) * C.sizeof_notify_msg_t))
	out := unsafe.Slice(list, len(messages))
	for i, m := range messages {
		out[i] = C.notify_msg_t{name: C.CString(m.Name), msg: C.CString(m.Text)}
	}
	return list
}
