//! A group: allocations that share one log entry.

use std::collections::VecDeque;

use super::{EngineError, Event, Ticket};

/// Blocks of a group: as many commands as a busy disk has in flight.
pub(super) const BLOCKS_MAX: usize = 256;

/// Requests that wait for a group's blocks.
pub(super) const TICKETS_MAX: usize = 512;

/// A block that gets space, and where (0 until the space is reserved).
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub block: u32,
    pub page: u32,
    pub offset_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    block: u32,
    ticket: Ticket,
}

/// Blocks, the pages of the table that name them, and who waits. Allocates nothing after `with_capacity`.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub blocks: Vec<Block>,
    /// Sorted, each once.
    pub pages: Vec<u32>,
    waiters: Vec<Waiter>,
}

impl Group {
    pub fn with_capacity(pages_max: usize) -> Self {
        Self {
            blocks: Vec::with_capacity(BLOCKS_MAX),
            pages: Vec::with_capacity(pages_max),
            waiters: Vec::with_capacity(TICKETS_MAX),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub fn tickets(&self) -> usize {
        self.waiters.len()
    }

    pub fn holds(&self, block: u32) -> bool {
        self.blocks.iter().any(|held| held.block == block)
    }

    /// Wait for a block that the group holds.
    pub fn join(&mut self, block: u32, ticket: Ticket) -> Result<(), EngineError> {
        if self.waiters.len() == TICKETS_MAX {
            return Err(EngineError::Busy);
        }
        self.waiters.push(Waiter { block, ticket });
        Ok(())
    }

    /// Add a block that neither group holds.
    pub fn add(&mut self, block: u32, page: u32, pages_max: usize, ticket: Ticket) -> Result<(), EngineError> {
        let place = self.pages.binary_search(&page);
        let full = self.blocks.len() == BLOCKS_MAX || (place.is_err() && self.pages.len() == pages_max);
        if full {
            return Err(EngineError::Busy);
        }
        self.join(block, ticket)?;
        if let Err(at) = place {
            self.pages.insert(at, page);
        }
        self.blocks.push(Block { block, page, offset_bytes: 0 });
        Ok(())
    }

    /// Tell everyone who waits that the blocks are there, and start anew.
    pub fn finish(&mut self, events: &mut VecDeque<Event>) {
        for waiter in &self.waiters {
            events.push_back(Event::Allocated { ticket: waiter.ticket, result: Ok(()) });
        }
        self.clear();
    }

    /// Give up the blocks from `kept` on, and tell those who wait for them.
    pub fn fail_from(&mut self, kept: usize, error: EngineError, events: &mut VecDeque<Event>) {
        let failed = &self.blocks[kept..];
        self.waiters.retain(|waiter| {
            let fails = failed.iter().any(|held| held.block == waiter.block);
            if fails {
                events.push_back(Event::Allocated { ticket: waiter.ticket, result: Err(error) });
            }
            !fails
        });
        self.blocks.truncate(kept);
        let blocks = &self.blocks;
        self.pages.retain(|page| blocks.iter().any(|held| held.page == *page));
    }

    /// Give up everything.
    pub fn fail_all(&mut self, error: EngineError, events: &mut VecDeque<Event>) {
        self.fail_from(0, error, events);
        self.clear();
    }

    fn clear(&mut self) {
        self.blocks.clear();
        self.pages.clear();
        self.waiters.clear();
    }
}
