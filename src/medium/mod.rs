//! What stands behind a LUN.
