//! First in, first out, with a fixed number of places.

use std::collections::VecDeque;

/// A queue of at most `capacity` items.
#[derive(Debug)]
pub struct Queue<T> {
    items: VecDeque<T>,
    capacity: usize,
}

impl<T> Queue<T> {
    /// A queue with room for `capacity` items.
    pub fn new(capacity: usize) -> Queue<T> {
        Queue { items: VecDeque::with_capacity(capacity), capacity }
    }

    /// Append an item; a full queue gives it back.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        if self.items.len() == self.capacity {
            return Err(item);
        }
        self.items.push_back(item);
        Ok(())
    }

    /// Put an item before all others; a full queue gives it back.
    #[inline]
    pub fn push_front(&mut self, item: T) -> Result<(), T> {
        if self.items.len() == self.capacity {
            return Err(item);
        }
        self.items.push_front(item);
        Ok(())
    }

    /// Take the oldest item.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        self.items.pop_front()
    }

    /// The oldest item.
    #[inline]
    pub fn front(&self) -> Option<&T> {
        self.items.front()
    }

    /// The oldest item, to change.
    #[inline]
    pub fn front_mut(&mut self) -> Option<&mut T> {
        self.items.front_mut()
    }

    /// All items, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items.iter()
    }

    /// Keep the items for which `keep` says so, in order.
    pub fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        self.items.retain(keep);
    }

    /// Drop all items.
    pub fn clear(&mut self) {
        self.items.clear();
    }

    /// Items held.
    #[inline]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Nothing is held.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// No room is left.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.items.len() == self.capacity
    }

    /// Room in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_the_item_back_and_order_survives_wrapping() {
        let mut queue = Queue::new(3);
        for round in 0..10 {
            assert_eq!((queue.push(round), queue.push(round + 1), queue.push(round + 2)), (Ok(()), Ok(()), Ok(())));
            assert_eq!((queue.push(99), queue.push_front(98)), (Err(99), Err(98)));
            assert!(queue.is_full());
            assert_eq!((queue.pop(), queue.pop()), (Some(round), Some(round + 1)));
            assert_eq!(queue.push_front(7), Ok(()));
            assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some(7), Some(round + 2), None));
        }
    }

    #[test]
    fn a_queue_of_no_places_holds_nothing() {
        let mut queue = Queue::new(0);
        assert_eq!(queue.push('a'), Err('a'));
        assert!(queue.is_empty() && queue.is_full());
    }

    #[test]
    fn use_within_capacity_never_moves_the_storage() {
        let mut queue = Queue::new(100);
        let room = queue.items.capacity();
        for item in 0..1000 {
            if queue.is_full() {
                queue.pop();
            }
            assert_eq!(queue.push(item), Ok(()));
        }
        assert_eq!(queue.items.capacity(), room);
        assert!(queue.iter().copied().eq(900..1000));
    }
}
