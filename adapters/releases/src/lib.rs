//! adapters/releases
