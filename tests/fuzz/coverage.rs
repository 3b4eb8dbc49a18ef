//! Which branches the code has taken, where the compiler was told to count (`tests/fuzz/guided` does).
//!
//! LLVM's coverage pass gives each module an array of counters, one byte for each edge of its control flow, and names
//! the arrays to a function of this name before `main`. Without that pass nobody calls it, and nothing is known.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// The modules' arrays.
static COUNTERS: Mutex<Vec<&'static [AtomicU8]>> = Mutex::new(Vec::new());

// SAFETY: no other function has this name; it is one that the compiler's pass wants somebody to define.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    let len = (stop as usize).saturating_sub(start as usize);
    if len == 0 {
        return;
    }
    // SAFETY: the pass's contract: the bytes from `start` to `stop` are its counters, and stay for ever. They are
    // written by plain additions; a lost one counts an edge as taken less often than it was, nothing else.
    let counters = unsafe { std::slice::from_raw_parts(start.cast::<AtomicU8>(), len) };
    let mut all = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    if all.iter().all(|known| known.as_ptr() != counters.as_ptr()) {
        all.push(counters);
    }
}

/// The edges that have been taken, with how often, roughly.
#[derive(Default)]
pub struct Coverage(BTreeSet<(u32, u8)>);

impl Coverage {
    /// Whether the compiler counts.
    pub fn is_known() -> bool {
        !COUNTERS.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Begin to count anew.
    pub fn reset() {
        for counter in COUNTERS.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().flatten() {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Add what was taken since [`Self::reset`]. How much of it is new.
    pub fn take(&mut self) -> usize {
        let all = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = all.iter().copied().flatten().zip(0u32..).filter_map(|(counter, edge)| {
            let times = counter.load(Ordering::Relaxed);
            (times > 0).then(|| (edge, magnitude(times)))
        });
        taken.filter(|&taken| self.0.insert(taken)).count()
    }

    /// Different edges.
    pub fn edges(&self) -> usize {
        self.0.iter().map(|&(edge, _)| edge).collect::<BTreeSet<u32>>().len()
    }
}

/// Once, twice, three times, and then by powers of two.
fn magnitude(times: u8) -> u8 {
    if times < 4 { times } else { 2 + times.ilog2() as u8 }
}
