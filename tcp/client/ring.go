package client

// ring is a first-in first-out buffer that keeps its memory.
type ring[T any] struct {
	items []T // a ring
	head  int
	count int
}

func (q *ring[T]) len() int { return q.count }

// at returns the i-th oldest item, in place.
func (q *ring[T]) at(i int) *T { return &q.items[(q.head+i)%len(q.items)] }

func (q *ring[T]) push(item T) {
	if q.count == len(q.items) {
		bigger := make([]T, max(16, 2*q.count))
		for i := range q.count {
			bigger[i] = *q.at(i)
		}
		q.items, q.head = bigger, 0
	}
	q.count++
	*q.at(q.count - 1) = item
}

func (q *ring[T]) pop() T {
	var zero T
	item := q.items[q.head]
	q.items[q.head] = zero // for the collector
	q.head = (q.head + 1) % len(q.items)
	q.count--
	return item
}
