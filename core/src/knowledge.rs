//! Data about K3s releases that code must not guess.
