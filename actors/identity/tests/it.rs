//! The service, its mirrors and verifiers over real files, many nodes in one process.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a panic is the report, and seeds and figures are printed")]

mod it {
    mod guesses;
    mod keys;
    mod lookup;
    mod mirror;
    mod tokens;
    pub(crate) mod world;
}
