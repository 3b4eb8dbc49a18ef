//! Where the data of WRITE ATOMIC waits until it is in its place: memory that the shard of the command fills and the
//! disk's home shard reads.
//!
//! There is a slot for each range of a disk that commands have to themselves at once; who has such a range has the slot
//! of its number.

use std::sync::{Arc, OnceLock};

use crate::blocks::Payload;
use crate::limits::ATOMIC_WRITE_BYTES_MAX;
use crate::mem::SharedMemory;

/// Slots of one disk.
pub const PAYLOAD_SLOTS: u8 = 8;

/// The slots of one disk. The first atomic write of the disk reserves their address space; memory is taken page by page
/// as it is used, 1 MiB at most.
#[derive(Default)]
pub struct Payloads(OnceLock<Arc<SharedMemory>>);

impl Payloads {
    fn place(slot: u8) -> u64 {
        assert!(slot < PAYLOAD_SLOTS, "ranges of a disk are numbered from 0 on");
        u64::from(slot) * u64::from(ATOMIC_WRITE_BYTES_MAX)
    }

    /// Keep the data of one command. False: there is no memory.
    pub fn put(&self, slot: u8, bytes: &[u8]) -> bool {
        assert!(bytes.len() <= ATOMIC_WRITE_BYTES_MAX as usize, "the unit says how much");
        if self.0.get().is_none() {
            let Ok(memory) = SharedMemory::new(Self::place(PAYLOAD_SLOTS - 1) + u64::from(ATOMIC_WRITE_BYTES_MAX))
            else {
                return false;
            };
            // Another shard may have been faster.
            let _ = self.0.set(Arc::new(memory));
        }
        let Some(memory) = self.0.get() else { return false };
        memory.write(Self::place(slot), bytes);
        true
    }

    /// What the engine reads, and from which byte on. `None`: nothing was put there ever.
    pub fn of_slot(&self, slot: u8) -> Option<(Arc<dyn Payload>, u64)> {
        let memory: Arc<dyn Payload> = Arc::clone(self.0.get()?) as _;
        Some((memory, Self::place(slot)))
    }
}

impl Payload for SharedMemory {
    fn copy_out(&self, at: u64, into: &mut [u8]) {
        self.read(at, into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_keeps_its_own() {
        let payloads = Payloads::default();
        assert!(payloads.of_slot(0).is_none());
        for slot in 0..PAYLOAD_SLOTS {
            assert!(payloads.put(slot, &vec![slot + 1; ATOMIC_WRITE_BYTES_MAX as usize]));
        }
        for slot in 0..PAYLOAD_SLOTS {
            let (payload, at) = payloads.of_slot(slot).expect("something was put there");
            let mut bytes = vec![0; ATOMIC_WRITE_BYTES_MAX as usize];
            payload.copy_out(at, &mut bytes);
            assert!(bytes.iter().all(|byte| *byte == slot + 1), "slot {slot}");
        }
    }
}
