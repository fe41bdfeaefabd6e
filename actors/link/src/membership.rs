//! (being written)
use crate::{link::Link, peers::Peers};
use horos_supervision::Vitals;
use std::sync::Arc;
pub(crate) const MAX_MESSAGE: usize = 65_507;
#[derive(Debug, Default)]
pub(crate) struct Inlet;
impl Inlet {
    pub(crate) fn received(&self, _: &Arc<Link>, _: Vec<u8>) {}
}
pub(crate) async fn run(_: Arc<Peers>, _: Arc<Vitals>) {
    std::future::pending().await
}
