//! The table of operations in flight.
