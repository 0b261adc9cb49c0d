package sockio

// records follows a stream of TLS records by their headers: type, version and length in five bytes.
type records struct {
	header [recordHeader]byte
	have   int    // bytes of the header
	body   int    // bytes of the record that are still to come
	length int    // of the record's body
	count  uint64 // records of data, and of what follows a handshake
	whole  uint64 // bytes of plaintext in records that have come completely, at most
}

const (
	recordHeader = 5
	recordData   = 23 // the type of all records after the handshake
	// recordOverhead is what a record has beside its plaintext: the tag of the cipher and the inner type.
	recordOverhead = 17
)

// note follows the bytes of b.
func (r *records) note(b []byte) {
	for len(b) > 0 {
		if r.have < recordHeader {
			n := copy(r.header[r.have:], b)
			r.have += n
			b = b[n:]
			if r.have < recordHeader {
				return
			}
			r.length = int(r.header[3])<<8 | int(r.header[4])
			r.body = r.length
		}
		n := min(r.body, len(b))
		r.body -= n
		b = b[n:]
		if r.body == 0 {
			r.have = 0
			if r.header[0] == recordData {
				r.count++
				r.whole += uint64(max(r.length-recordOverhead, 0))
			}
		}
	}
}
