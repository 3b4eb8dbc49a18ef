//! The loop: reap, dispatch, submit.
