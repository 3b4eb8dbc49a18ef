//! Items under keys that go stale.

/// The key of an item in a [`Slab`]: a place and how often the place was used. A key whose item is gone stays invalid
/// even when the place is used again (until 2^32 uses later).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// As one number, for wire handles and completion keys.
    #[inline]
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// From [`to_bits`](Self::to_bits). Any number is a key; a slab says whether it is one of its own.
    #[inline]
    pub fn from_bits(bits: u64) -> Key {
        Key { index: bits as u32, generation: (bits >> 32) as u32 }
    }

    /// The place alone, below the slab's capacity: an index for tables beside the slab.
    #[inline]
    pub fn index(self) -> usize {
        self.index as usize
    }
}

#[derive(Debug)]
enum Place<T> {
    /// The next free place, or the capacity at the end of the list.
    Free {
        next: u32,
    },
    Used(T),
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    place: Place<T>,
}

/// At most `capacity` items under generation-carrying keys. Insertion, look-up and removal take constant time.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Box<[Entry<T>]>,
    free_first: u32,
    len: usize,
}

impl<T> Slab<T> {
    /// A slab with room for `capacity` items (below 2^32).
    pub fn new(capacity: usize) -> Slab<T> {
        let count = u32::try_from(capacity).expect("a slab has fewer than 2^32 places");
        let entries = (0..count).map(|i| Entry { generation: 0, place: Place::Free { next: i + 1 } }).collect();
        Slab { entries, free_first: 0, len: 0 }
    }

    /// Keep an item; a full slab gives it back. Places freed last are used first.
    #[inline]
    pub fn insert(&mut self, item: T) -> Result<Key, T> {
        let index = self.free_first;
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return Err(item);
        };
        match std::mem::replace(&mut entry.place, Place::Used(item)) {
            Place::Free { next } => self.free_first = next,
            Place::Used(_) => unreachable!("the free list held a used place"),
        }
        self.len += 1;
        Ok(Key { index, generation: entry.generation })
    }

    /// The item, unless the key is stale or foreign.
    #[inline]
    pub fn at(&self, key: Key) -> Option<&T> {
        match self.entries.get(key.index as usize) {
            Some(Entry { generation, place: Place::Used(item) }) if *generation == key.generation => Some(item),
            _ => None,
        }
    }

    /// The item, to change.
    #[inline]
    pub fn at_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.entries.get_mut(key.index as usize) {
            Some(Entry { generation, place: Place::Used(item) }) if *generation == key.generation => Some(item),
            _ => None,
        }
    }

    /// Take the item out; its key is stale from then on.
    #[inline]
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation != key.generation || matches!(entry.place, Place::Free { .. }) {
            return None;
        }
        entry.generation = entry.generation.wrapping_add(1);
        let place = std::mem::replace(&mut entry.place, Place::Free { next: self.free_first });
        self.free_first = key.index;
        self.len -= 1;
        match place {
            Place::Used(item) => Some(item),
            Place::Free { .. } => unreachable!("just seen in use"),
        }
    }

    /// The key of the item in a place, if it has one.
    pub fn key_at(&self, index: usize) -> Option<Key> {
        match self.entries.get(index) {
            Some(Entry { generation, place: Place::Used(_) }) => {
                Some(Key { index: index as u32, generation: *generation })
            }
            _ => None,
        }
    }

    /// All items with their keys, by place.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| match &entry.place {
            Place::Used(item) => Some((Key { index: index as u32, generation: entry.generation }, item)),
            Place::Free { .. } => None,
        })
    }

    /// All items with their keys, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.entries.iter_mut().enumerate().filter_map(|(index, entry)| match &mut entry.place {
            Place::Used(item) => Some((Key { index: index as u32, generation: entry.generation }, item)),
            Place::Free { .. } => None,
        })
    }

    /// Items held.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing is held.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// No room is left.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.len == self.entries.len()
    }

    /// Room in all.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing_even_when_its_place_is_used_again() {
        let mut slab = Slab::new(2);
        let first = slab.insert("first").unwrap();
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second").unwrap();
        assert_eq!(second.index(), first.index());
        assert_eq!(slab.at(first), None);
        assert_eq!(slab.at_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.at(second), Some(&"second"));
        assert_eq!(Key::from_bits(second.to_bits()), second);
        assert_eq!(slab.at(Key::from_bits(u64::MAX)), None);
    }

    #[test]
    fn a_full_slab_gives_the_item_back() {
        let mut slab = Slab::new(3);
        let keys: Vec<Key> = (0..3).map(|n| slab.insert(n).unwrap()).collect();
        assert_eq!(slab.insert(9), Err(9));
        assert!(slab.is_full());
        assert_eq!(slab.remove(keys[1]), Some(1));
        assert_eq!(slab.remove(keys[1]), None);
        assert_eq!(slab.len(), 2);
        assert!(slab.iter().map(|(_, n)| *n).eq([0, 2]));
        slab.iter_mut().for_each(|(_, n)| *n += 10);
        let key = slab.insert(5).unwrap();
        assert_eq!((slab.key_at(1), slab.at(keys[0]), slab.at(key)), (Some(key), Some(&10), Some(&5)));
    }
}
