//! The SCSI engine, sans-IO.
