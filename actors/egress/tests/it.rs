//! What egress promises, kept against real sockets: no test needs the Internet or DNS.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod it {
    mod corpus;
    mod hostile;
    mod hosts;
    mod http3;
    mod http3_hostile;
    mod http3_server;
    mod limits;
    mod redirects;
    mod server;
    mod trusted;
    mod world;
}
