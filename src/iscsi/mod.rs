//! The iSCSI protocol engine, sans-IO.
