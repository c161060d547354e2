//! Joins facts from the API, the hosts and the configuration to one inventory.
