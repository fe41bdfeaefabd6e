//! Two nodes and more in one process, over real QUIC on loopback.

mod it {
    pub(crate) mod cluster;
    mod messages;
}
