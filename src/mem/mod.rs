//! Arena, size-classed pools, owned buffers.
