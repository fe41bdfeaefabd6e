//! What the store promises, with real files, threads and processes.

mod backups;
mod opening;
mod reading;
mod support;
mod watching;
mod writing;
