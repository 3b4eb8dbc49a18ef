//! The boundary to the kernel.
