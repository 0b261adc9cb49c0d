package etcd

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// The messages of etcd's API, version 3, that the store sends and receives. The numbers are those of rpc.proto and
// kv.proto of go.etcd.io/etcd/api/v3, where a number keeps its meaning for good. A field of the value 0 is left out.

// Fields of requests.
const (
	rangeKey       protowire.Number = 1
	rangeEnd       protowire.Number = 2 // the first key that is not asked for
	rangeLimit     protowire.Number = 3
	rangeKeysOnly  protowire.Number = 8
	rangeCountOnly protowire.Number = 9

	putKey   protowire.Number = 1
	putValue protowire.Number = 2
	putLease protowire.Number = 3

	deleteKey protowire.Number = 1

	txnCompare protowire.Number = 1
	txnSuccess protowire.Number = 2

	compareResult      protowire.Number = 1 // EQUAL is 0
	compareTarget      protowire.Number = 2
	compareKey         protowire.Number = 3
	compareModRevision protowire.Number = 6

	opPut    protowire.Number = 2
	opDelete protowire.Number = 3

	grantTTL      protowire.Number = 1
	keepAliveID   protowire.Number = 1
	loginName     protowire.Number = 1
	loginPassword protowire.Number = 2
)

// Fields of replies.
const (
	rangeReplyEntry protowire.Number = 2
	rangeReplyMore  protowire.Number = 3

	entryKey         protowire.Number = 1
	entryModRevision protowire.Number = 3
	entryValue       protowire.Number = 5

	txnReplySucceeded protowire.Number = 2

	leaseReplyID  protowire.Number = 2
	leaseReplyTTL protowire.Number = 3

	loginReplyToken protowire.Number = 2
)

const modRevision = 2 // what a Compare compares

func appendBytes[T string | []byte](message []byte, field protowire.Number, value T) []byte {
	message = protowire.AppendTag(message, field, protowire.BytesType)
	message = protowire.AppendVarint(message, uint64(len(value)))
	return append(message, value...)
}

func appendInt(message []byte, field protowire.Number, value int64) []byte {
	message = protowire.AppendTag(message, field, protowire.VarintType)
	return protowire.AppendVarint(message, uint64(value))
}

func rangeRequest(key string) []byte { return appendBytes(nil, rangeKey, key) }

// countRequest asks whether a key is there.
func countRequest(key string) []byte { return appendInt(rangeRequest(key), rangeCountOnly, 1) }

// keysRequest asks for the first keys from one key on and before another.
func keysRequest(from, end string, limit int) []byte {
	message := appendBytes(rangeRequest(from), rangeEnd, end)
	return appendInt(appendInt(message, rangeLimit, int64(limit)), rangeKeysOnly, 1)
}

func putRequest(key, value string, lease int64) []byte {
	message := appendBytes(appendBytes(nil, putKey, key), putValue, value)
	if lease != 0 {
		message = appendInt(message, putLease, lease)
	}
	return message
}

func deleteRequest(key string) []byte { return appendBytes(nil, deleteKey, key) }

// txnRequest does an operation if a key was changed last at a revision; at 0, if it is not there.
func txnRequest(key string, revision int64, op protowire.Number, request []byte) []byte {
	compare := appendBytes(appendInt(nil, compareTarget, modRevision), compareKey, key)
	compare = appendInt(compare, compareModRevision, revision)
	return appendBytes(appendBytes(nil, txnCompare, compare), txnSuccess, appendBytes(nil, op, request))
}

func grantRequest(seconds int64) []byte { return appendInt(nil, grantTTL, seconds) }

func keepAliveRequest(lease int64) []byte { return appendInt(nil, keepAliveID, lease) }

func loginRequest(name, password string) []byte {
	return appendBytes(appendBytes(nil, loginName, name), loginPassword, password)
}

// entry is a key's value, and the revision of the cluster at which it was put.
type entry struct {
	value    []byte
	revision int64
}

// rangeReply is the entry of a single key.
func rangeReply(message []byte) (e entry, found bool, err error) {
	err = fields(message, func(field protowire.Number, _ uint64, text []byte) error {
		if field != rangeReplyEntry || text == nil {
			return nil
		}
		found, e = true, entry{}
		return fields(text, func(field protowire.Number, number uint64, text []byte) error {
			switch field {
			case entryModRevision:
				e.revision = int64(number)
			case entryValue:
				e.value = text
			}
			return nil
		})
	})
	return e, found, err
}

// keysReply are the keys of a reply, in their order. more says that there are further ones.
func keysReply(message []byte) (keys []string, more bool, err error) {
	err = fields(message, func(field protowire.Number, number uint64, text []byte) error {
		switch {
		case field == rangeReplyMore:
			more = number != 0
		case field == rangeReplyEntry && text != nil:
			return fields(text, func(field protowire.Number, _ uint64, text []byte) error {
				if field == entryKey && text != nil {
					keys = append(keys, string(text))
				}
				return nil
			})
		}
		return nil
	})
	return keys, more, err
}

// txnReply reports whether the condition was met.
func txnReply(message []byte) (succeeded bool, err error) {
	err = fields(message, func(field protowire.Number, number uint64, _ []byte) error {
		if field == txnReplySucceeded {
			succeeded = number != 0
		}
		return nil
	})
	return succeeded, err
}

// leaseReply answers a grant and a renewal. Without seconds left, the lease has ended.
func leaseReply(message []byte) (lease, seconds int64, err error) {
	err = fields(message, func(field protowire.Number, number uint64, _ []byte) error {
		switch field {
		case leaseReplyID:
			lease = int64(number)
		case leaseReplyTTL:
			seconds = int64(number)
		}
		return nil
	})
	return lease, seconds, err
}

func loginReply(message []byte) (token string, err error) {
	err = fields(message, func(field protowire.Number, _ uint64, text []byte) error {
		if field == loginReplyToken {
			token = string(text)
		}
		return nil
	})
	return token, err
}

// fields calls f with each field of a message that is a number or bytes, and passes over others. Of a number, text is nil,
// and of bytes it is not.
func fields(message []byte, f func(field protowire.Number, number uint64, text []byte) error) error {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return malformed(n)
		}
		message = message[n:]
		var number uint64
		var text []byte
		switch kind {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			text, n = protowire.ConsumeBytes(message)
		default:
			if n = protowire.ConsumeFieldValue(field, kind, message); n >= 0 {
				message = message[n:]
				continue
			}
		}
		if n < 0 {
			return malformed(n)
		}
		message = message[n:]
		if err := f(field, number, text); err != nil {
			return err
		}
	}
	return nil
}

func malformed(n int) error {
	return errors.Join(errors.New("the answer is no message of etcd"), protowire.ParseError(n))
}
