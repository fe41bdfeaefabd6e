//! Real files, and streams made by the BO's side of this crate or by hand.

mod crashes;
mod deltas;
mod hostile;
mod privacy;
mod random;
mod readers;
mod rollbacks;
mod snapshots;
mod speed;
pub(crate) mod world;
