//! Compression by magic bytes (to be written)
