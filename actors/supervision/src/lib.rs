//! Supervision: everything that runs is an actor with a parent, vital signs and a flight recorder.
//!
//! A supervisor restarts what dies, as OTP does; [`Vitals`] are what an actor shows of itself without
//! being asked; the watchdog's thread names who is stuck. Built on `ractor`, of which nothing shows
//! but `ActorCell`; its process-wide registry and its `cluster` feature are not used.

pub mod backoff;
pub mod bulk;
mod census;
pub mod concurrent;
pub mod context;
pub mod exchange;
pub mod histogram;
pub mod mailbox;
mod recorder;
pub mod reference;
pub mod service;
pub mod supervisor;
pub mod vitals;
mod watchdog;
mod worker;

pub use backoff::Backoff;
pub use concurrent::{Concurrent, Places, concurrent};
pub use context::{Caller, Context, Deadline, Prover, User};
pub use exchange::Exchange;
pub use histogram::Histogram;
pub use recorder::RECORDED;
pub use reference::Ref;
pub use service::{Handle, OpenError, Service, ServiceSpec, Table, service};
pub use supervisor::{ChildSpec, Intensity, OnStuck, Restart, Start, StartError, Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
pub use vitals::{Down, Incoming, Vitals};
pub use watchdog::LOOK_EVERY;
pub use worker::{worker, worker_with};
