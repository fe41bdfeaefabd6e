//! The service, its mirrors and verifiers over real files, many nodes in one process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod it {
    mod guesses;
    mod keys;
    mod logs;
    mod lookup;
    mod mirror;
    mod tokens;
    pub(crate) mod world;
}
