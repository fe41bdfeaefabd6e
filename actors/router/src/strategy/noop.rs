//! `noop`: nobody is called, and calls succeed.

use std::sync::Arc;

use super::{Strategy, Target};
use crate::config::Config;

pub(super) struct Noop;

impl Strategy for Noop {
    /// Whatever endpoint there is stays: a service is switched off by its strategy alone, and on again in the same way.
    fn check(&self, _: &str, _: &str, _: &Config) -> Result<(), String> {
        Ok(())
    }

    fn open(&self, _: &str, _: &str, config: &Arc<Config>) -> Result<Target, String> {
        Ok(Target::Nobody(Arc::new(config.reply.clone().unwrap_or_default())))
    }
}
