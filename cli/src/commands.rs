//! One function a command.

pub(crate) mod demo;
pub(crate) mod init;
pub(crate) mod look;
pub(crate) mod roll;
