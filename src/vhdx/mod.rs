//! The VHDX format engine, sans-IO.
