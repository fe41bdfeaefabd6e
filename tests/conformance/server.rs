//! Our server is asked by the suite: each of its revisions, over each way that there is to the server.

use super::bridge::Bridge;
use super::exceptions::{Over, Side, as_listed};
use super::suite::Suite;
use super::world::{KEY, PATH, Served};

async fn satisfied(suite: Suite, over: Over) {
    let served = Served::start().await;
    let bridge = Bridge::open(&served.site, over, KEY).await.unwrap();
    let found = suite.ask_server(&bridge.url(PATH)).await;
    as_listed(&found, suite, Side::Server, over);
}

macro_rules! satisfied {
    ($($name:ident: $suite:ident $over:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            satisfied(Suite::$suite, Over::$over).await;
        }
    )*};
}

satisfied! {
    the_older_suite_is_satisfied_over_http_1: Old Http1;
    the_older_suite_is_satisfied_over_http_2: Old Http2;
    the_older_suite_is_satisfied_over_http_3: Old Http3;
    the_older_suite_is_satisfied_over_quic: Old Quic;
    sessions_of_2025_11_25_are_as_the_suite_wants_them_over_http_1: Sessions Http1;
    sessions_of_2025_11_25_are_as_the_suite_wants_them_over_http_2: Sessions Http2;
    sessions_of_2025_11_25_are_as_the_suite_wants_them_over_http_3: Sessions Http3;
    sessions_of_2025_11_25_are_as_the_suite_wants_them_over_quic: Sessions Quic;
    requests_of_2026_07_28_are_as_the_suite_wants_them_over_http_1: Stateless Http1;
    requests_of_2026_07_28_are_as_the_suite_wants_them_over_http_2: Stateless Http2;
    requests_of_2026_07_28_are_as_the_suite_wants_them_over_http_3: Stateless Http3;
    requests_of_2026_07_28_are_as_the_suite_wants_them_over_quic: Stateless Quic;
}
