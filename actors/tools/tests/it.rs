//! The crate from outside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod it {
    mod quic;
}
