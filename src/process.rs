//! Processes (to be written)
