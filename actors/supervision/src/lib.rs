//! Supervision: everything that runs is an actor with a parent, vital signs and a flight recorder.
//!
//! A supervisor restarts what dies, as OTP does; [`Vitals`] are what an actor shows of itself without
//! being asked; the watchdog's thread names who is stuck. Built on `ractor`, of which nothing shows
//! but `ActorCell`; its process-wide registry and its `cluster` feature are not used.

pub mod backoff;
mod census;
mod histogram;
mod recorder;
pub mod supervisor;
pub mod vitals;
mod watchdog;

pub use backoff::Backoff;
pub use recorder::RECORDED;
pub use supervisor::{ChildSpec, Intensity, OnStuck, Restart, Start, StartError, Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
pub use vitals::{Down, Incoming, Vitals};
pub use watchdog::LOOK_EVERY;
