//! The port, as clients meet it: real sockets, real TLS, clients that behave and clients that do not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod it {
    #[cfg(feature = "acme")]
    mod acme;
    mod certificates;
    mod counts;
    mod guard_answers;
    mod guard_body;
    mod guard_decides;
    mod guard_head;
    mod guard_keys;
    mod guard_rate;
    mod guard_state;
    mod guard_world;
    mod h3;
    mod h3_hostile;
    mod h3_measured;
    mod h3_world;
    mod in_hand;
    mod tcp;
    mod tcp_drain;
    mod tcp_early;
    mod tcp_hostile;
    pub(crate) mod world;
}
