//! The moments between the steps of a command, at which a test can end it as a crash would.

/// Marks that a step is done. Outside tests it is nothing.
#[inline]
pub(super) fn step(name: &'static str) {
    #[cfg(test)]
    armed::pass(name);
    #[cfg(not(test))]
    let _ = name;
}

#[cfg(test)]
pub(super) mod armed {
    use std::cell::{Cell, RefCell};

    thread_local! {
        static FUSE: Cell<Option<usize>> = const { Cell::new(None) };
        static PASSED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }

    /// On this thread, crash at the n-th step from now; `None` never crashes. Forgets which steps were passed.
    pub fn arm(steps: Option<usize>) {
        FUSE.set(steps);
        PASSED.take();
    }

    /// The steps passed since [`arm`].
    pub fn passed() -> Vec<&'static str> {
        PASSED.take()
    }

    pub(super) fn pass(name: &'static str) {
        PASSED.with_borrow_mut(|passed| passed.push(name));
        match FUSE.get() {
            Some(0) => {
                FUSE.set(None);
                panic!("crash injected after '{name}'");
            }
            Some(left) => FUSE.set(Some(left - 1)),
            None => {}
        }
    }
}
