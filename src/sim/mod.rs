//! Simulated ring, files and network.
