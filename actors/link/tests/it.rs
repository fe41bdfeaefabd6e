//! Two nodes and more in one process, over real QUIC on loopback.

mod it {
    mod broken_path;
    pub(crate) mod cluster;
    mod gossip;
    mod messages;
    mod raw;
    #[path = "../../../../tests/relay.rs"]
    mod relay;
    pub(crate) mod world;
}
