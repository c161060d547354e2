//! The one loop: loads facts, asks core, performs actions through the ports, appends events.

pub mod ports;
