package tcp

import "golang.org/x/sys/unix"

// On one host, a file descriptor may come with the first bytes of a connection.

// expectFile has the first receive of the direction take a file descriptor.
func (h *half) expectFile() {
	h.control = make([]byte, unix.CmsgSpace(4))
	h.message.Control = &h.control[0]
	h.message.SetControllen(len(h.control))
	h.flags |= unix.MSG_CMSG_CLOEXEC
	h.file = -1
}

// keepFile keeps the file descriptor that came with what was received just now.
func (h *half) keepFile() {
	if h.control == nil {
		return
	}
	came := h.control[:h.message.Controllen]
	h.control, h.message.Control = nil, nil
	h.message.SetControllen(0)
	messages, _ := unix.ParseSocketControlMessage(came) // none where that is malformed
	for i := range messages {
		files, _ := unix.ParseUnixRights(&messages[i])
		for _, file := range files {
			if h.file < 0 {
				h.file = file
			} else {
				closeFile(file)
			}
		}
	}
}

// takeFile is the file descriptor that came. It is the caller's from here on.
func (h *half) takeFile() (file int, came bool) {
	file, h.file = h.file, -1
	return file, file >= 0
}

// closeFile closes a file descriptor of which nobody has made use.
func closeFile(file int) { _ = unix.Close(file) }
