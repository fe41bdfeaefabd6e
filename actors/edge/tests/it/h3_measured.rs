//! What hostile HTTP/3 clients cost in memory.

mod measured {
    use bytes::Bytes;
    use horos_edge::{Config, Reason, Timeouts};

    use crate::it::{
        h3_world::{Door, EXCESSIVE_LOAD, announce, quick},
        world::{Counting as _, LONG, scale},
    };

    /// The memory of this process that is in use, in KiB.
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
        // In pages, which are 4 KiB on every machine this is tested on.
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("the second number is the resident set") * 4
    }

    /// Whether the test is to go on here: what this process needs is the test's own only where it has it to itself, which
    /// nextest sees to; elsewhere it is run again by itself.
    fn is_alone(name: &str) -> bool {
        if std::env::var_os("NEXTEST").is_some() || std::env::var_os("HOROS_TEST_ALONE").is_some() {
            return true;
        }
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let name = format!("it::h3_measured::measured::{name}");
        let ended = again.args(["--exact", &name, "--nocapture"]).env("HOROS_TEST_ALONE", "1").status().unwrap();
        assert!(ended.success(), "{name}, by itself");
        false
    }

    fn wide() -> Config {
        let mut config = quick();
        config.limits.streams = 256;
        // However long it takes to open them all on a machine that is busy.
        config.timeouts = Timeouts { head: LONG * 3, idle: LONG * 3, ..config.timeouts };
        config
    }

    #[tokio::test]
    async fn announcing_a_gibibyte_on_256_streams_costs_no_more_than_saying_so() {
        if !is_alone("announcing_a_gibibyte_on_256_streams_costs_no_more_than_saying_so") {
            return;
        }
        let door = Door::open(wide());
        let mut other = door.client().await;
        let connections = scale(32, 512);
        let before = resident();
        for connection in 0..connections {
            let raw = door.raw().await;
            // HEADERS, and what nobody knows, with as much of what they announce as gets through.
            let kind = if connection % 2 == 0 { 0x1 } else { 0x21 };
            let part = [Bytes::from(announce(kind, 1 << 30)), Bytes::from(vec![0; 16 * 1024])].concat();
            for _ in 0..256 {
                let Ok((mut send, _recv)) = raw.connection.open_bi().await else { break };
                if send.write_all(&part).await.is_err() {
                    break;
                }
            }
            assert_eq!(raw.closed().await, EXCESSIVE_LOAD);
            assert_eq!(other.get("/t/hello").await.1, "hello");
        }
        let grown = resident().saturating_sub(before);
        door.counted(Reason::FrameTooLarge, connections).await;
        assert!(grown < 64 * 1024, "{grown} KiB more");
    }

    #[tokio::test]
    async fn half_heads_on_256_streams_of_every_connection_are_bounded() {
        if !is_alone("half_heads_on_256_streams_of_every_connection_are_bounded") {
            return;
        }
        let door = Door::open(wide());
        // All of them say nothing more, for which QUIC gives each half a minute.
        let connections = scale(24, 128);
        let before = resident();
        let mut held = Vec::new();
        for _ in 0..connections {
            let raw = door.raw().await;
            // Within what a connection may have of them: 256 times 3 KiB of 4 announced.
            let part = [announce(0x1, 4 * 1024), vec![0; 3 * 1024]].concat();
            let mut streams = Vec::new();
            for _ in 0..256 {
                streams.push(raw.say(&part).await);
            }
            held.push((raw, streams));
        }
        let grown = resident().saturating_sub(before) / connections;
        // A mebibyte of heads, and what the streams and the client of this very process cost.
        assert!(grown < 4 * 1024, "{grown} KiB a connection");
        assert_eq!(door.client().await.get("/t/hello").await.1, "hello");
        assert!(door.counts().is_empty(), "{:?}", door.counts());
    }
}
