package sockio

import "golang.org/x/sys/unix"

// On one host, a file descriptor may come with the first bytes of a connection.

// expectFile has the first receive of the direction take a file descriptor.
func (d *direction) expectFile() {
	d.control = make([]byte, unix.CmsgSpace(4))
	d.message.Control = &d.control[0]
	d.message.SetControllen(len(d.control))
	d.flags |= unix.MSG_CMSG_CLOEXEC
	d.file = -1
}

// keepFile keeps the first file descriptor that came with the last receive, and closes the others.
func (d *direction) keepFile() {
	if d.control == nil {
		return
	}
	came := d.control[:d.message.Controllen]
	d.control, d.message.Control = nil, nil
	d.message.SetControllen(0)
	if file := firstFile(came); d.file < 0 {
		d.file = file
	} else if file >= 0 {
		CloseFile(file)
	}
}

// firstFile is the first file descriptor in control messages, or -1. It closes the others.
func firstFile(control []byte) (first int) {
	first = -1
	messages, _ := unix.ParseSocketControlMessage(control) // none if malformed
	for i := range messages {
		files, _ := unix.ParseUnixRights(&messages[i])
		for _, file := range files {
			if first < 0 {
				first = file
			} else {
				CloseFile(file)
			}
		}
	}
	return first
}

// takeFile returns the file descriptor that came. The caller owns it from then on.
func (d *direction) takeFile() (file int, came bool) {
	file, d.file = d.file, -1
	return file, file >= 0
}

// CloseFile closes a file descriptor that came with a connection, or was sent with one.
func CloseFile(file int) { _ = unix.Close(file) }
