//! adapters/store
