//! Unit tests that look inside.
