package staging

// queue is a first-in first-out buffer that keeps its memory.
type queue[T any] struct {
	items []T // a ring
	head  int
	count int
}

func (q *queue[T]) len() int { return q.count }

func (q *queue[T]) push(item T) {
	if q.count == len(q.items) {
		bigger := make([]T, max(16, 2*q.count))
		copied := copy(bigger, q.items[q.head:])
		copy(bigger[copied:], q.items[:q.head])
		q.items, q.head = bigger, 0
	}
	q.items[(q.head+q.count)%len(q.items)] = item
	q.count++
}

// first is a pointer to the item that pop would return.
func (q *queue[T]) first() *T { return &q.items[q.head] }

func (q *queue[T]) pop() T {
	var zero T
	item := q.items[q.head]
	q.items[q.head] = zero // let the collector free it
	q.head = (q.head + 1) % len(q.items)
	q.count--
	return item
}

// take empties the queue.
func (q *queue[T]) take() []T {
	items := make([]T, 0, q.count)
	for q.count > 0 {
		items = append(items, q.pop())
	}
	return items
}
