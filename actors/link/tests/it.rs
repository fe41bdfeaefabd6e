//! Two nodes and more in one process, over real QUIC on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod it {
    mod answers;
    mod broken_path;
    mod callback;
    pub(crate) mod cluster;
    mod comings;
    mod flood;
    mod front_office;
    mod gossip;
    mod hostile;
    mod messages;
    mod never_reads;
    mod protocols;
    mod raw;
    #[path = "../../../../tests/relay.rs"]
    mod relay;
    mod slow;
    mod strangers;
    pub(crate) mod world;
}
