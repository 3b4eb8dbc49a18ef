//! API server, configuration, persistence, access rules.
