//! adapters/ssh
