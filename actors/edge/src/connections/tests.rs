use std::net::Ipv6Addr;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn table(limits: Limits) -> (Arc<Connections>, Metrics) {
    let metrics = Metrics::default();
    let timeouts = Timeouts { handshake: HOUR, head: HOUR, body: HOUR, answer: HOUR, stalled: HOUR, idle: HOUR };
    let proxy = ("10.1.0.0".parse().unwrap(), 16);
    (Connections::new(limits, timeouts, &[proxy], metrics.clone()), metrics)
}

fn peer(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 50_000)
}

fn serving(connections: &Arc<Connections>, address: &str) -> Place {
    let place = connections.admit(peer(address)).unwrap();
    place.speaks(Version::Http1);
    place
}

#[test]
fn connections_of_one_address_are_bounded() {
    let (connections, _) = table(Limits { connections_per_address: 2, ..Limits::default() });
    let first = serving(&connections, "192.0.2.1");
    let _second = serving(&connections, "::ffff:192.0.2.1");
    assert_eq!(connections.admit(peer("192.0.2.1")).unwrap_err(), Reason::AddressFull);
    let _another = serving(&connections, "192.0.2.2");
    drop(first);
    serving(&connections, "192.0.2.1");
}

#[test]
fn a_household_of_ipv6_is_one_address() {
    let (connections, _) = table(Limits { connections_per_address: 2, ..Limits::default() });
    let _places = [serving(&connections, "2001:db8:0:1::1"), serving(&connections, "2001:db8:0:1:ffff::2")];
    assert_eq!(connections.admit(peer("2001:db8:0:1:abcd::3")).unwrap_err(), Reason::AddressFull);
    serving(&connections, "2001:db8:0:2::1");
}

#[test]
fn handshakes_of_one_address_are_bounded_and_those_of_others_go_on() {
    let (connections, _) = table(Limits { handshakes: 32, ..Limits::default() });
    let mut shaking: Vec<_> = (0..4).map(|host| connections.admit(peer(&format!("2001:db8::{host}"))).unwrap()).collect();
    assert_eq!(connections.admit(peer("2001:db8::ffff")).unwrap_err(), Reason::AddressHandshakesFull);
    let _other = connections.admit(peer("2001:db8:0:1::1")).unwrap();
    // One that has ended its handshake, and one that was given up, make room for one each.
    shaking[0].speaks(Version::Http1);
    shaking.push(connections.admit(peer("2001:db8::4")).unwrap());
    drop(shaking.remove(1));
    shaking.push(connections.admit(peer("2001:db8::5")).unwrap());
    assert_eq!(connections.admit(peer("2001:db8::ffff")).unwrap_err(), Reason::AddressHandshakesFull);
    let _exempt: Vec<_> = (0..5).map(|_| connections.admit(peer("127.0.0.1")).unwrap()).collect();
    drop(shaking);
    assert!(connections.admit(peer("2001:db8::1")).is_ok());
    let few = table(Limits { handshakes: 1, ..Limits::default() }).0;
    assert!(few.admit(peer("192.0.2.1")).is_ok(), "an eighth is at least one");
}

#[test]
fn loopback_and_trusted_proxies_are_exempt() {
    let (connections, _) = table(Limits { connections_per_address: 1, ..Limits::default() });
    let exempt = ["127.0.0.1", "::1", "10.1.2.3", "::ffff:10.1.2.3"];
    let _places: Vec<_> = exempt.iter().flat_map(|address| [serving(&connections, address), serving(&connections, address)]).collect();
    let _other = serving(&connections, "10.2.0.1");
    assert_eq!(connections.admit(peer("10.2.0.1")).unwrap_err(), Reason::AddressFull);
}

#[test]
fn nothing_is_left_of_connections_that_have_ended() {
    let (connections, _) = table(Limits::default());
    let places: Vec<_> =
        (0..1000_u32).map(|index| serving(&connections, &Ipv6Addr::from_bits(u128::from(index) << 64).to_string())).collect();
    connections.cut_all(Reason::Draining);
    drop(places);
    let table = connections.table.lock();
    assert_eq!(table.leaving, 0);
    assert!(table.open.is_empty() && table.shaking.is_empty() && table.addresses.is_empty());
    assert!(table.open.capacity() < 200 && table.addresses.capacity() < 200);
}

#[test]
fn who_has_begun_a_request_goes_after_who_has_not_and_who_is_served_never() {
    let (connections, metrics) = table(Limits { connections: 3, ..Limits::default() });
    let [served, begun, idle] = [(); 3].map(|()| serving(&connections, "127.0.0.1"));
    let hold = served.life().begin();
    begun.life().head_begins();
    let told = |place: &Place| place.life().command();
    let fourth = serving(&connections, "127.0.0.1");
    assert_eq!([told(&served), told(&begun), told(&idle)], [Command::Stay, Command::Stay, Command::Leave]);
    let held = fourth.life().begin();
    let mut fifth = connections.admit(peer("127.0.0.1"));
    // A look is not repeated at once; what it found before may do.
    while fifth.is_err() {
        fifth = connections.admit(peer("127.0.0.1"));
    }
    assert_eq!([told(&served), told(&begun), told(&fourth)], [Command::Stay, Command::Leave, Command::Stay]);
    assert_eq!(metrics.count(Reason::Idle), 2);
    let _held = fifth.as_ref().unwrap().life().begin();
    assert_eq!(connections.admit(peer("127.0.0.1")).unwrap_err(), Reason::ConnectionsFull);
    drop((hold, held));
}

#[test]
fn a_flood_of_those_that_do_not_leave_is_cut_off() {
    let (connections, _) = table(Limits { connections: 4, handshakes: 10_000, ..Limits::default() });
    let mut places = Vec::new();
    let mut refused = 0;
    while places.len() < 1000 {
        match connections.admit(peer("127.0.0.1")) {
            Ok(place) => {
                place.speaks(Version::Http2);
                places.push(place);
            }
            Err(reason) => {
                assert_eq!(reason, Reason::ConnectionsFull);
                refused += 1;
                assert!(refused < 1_000_000, "room is made again");
            }
        }
    }
    let told = |command| places.iter().filter(|place| place.life().command() == command).count();
    assert_eq!((told(Command::Stay), told(Command::Leave)), (4, LEAVING), "the others are cut off");
}

#[test]
fn an_answer_that_waits_too_long_is_ended_alone() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (connections, _) = table(Limits::default());
        let place = connections.admit(peer("192.0.2.1")).unwrap();
        place.speaks(Version::Http2);
        let life = place.life();
        let [mut stalled, mut flowing] = [(); 2].map(|()| {
            let hold = life.begin();
            let task = tokio::spawn(std::future::pending::<()>());
            life.adopt(life.begun(), task.abort_handle());
            (hold, task)
        });
        stalled.0.waits();
        flowing.0.waits();
        flowing.0.is_taken();
        let (now, later) = (Instant::now(), Instant::now() + HOUR);
        assert_eq!(life.end_stalled(now, Duration::from_secs(30)), 0, "it has waited since now");
        assert_eq!(life.end_stalled(later, Duration::from_secs(30)), 1);
        assert!(stalled.1.await.unwrap_err().is_cancelled());
        assert!(!flowing.1.is_finished());
        assert_eq!(life.end_stalled(later, Duration::from_secs(30)), 0, "it is counted once");
        drop((stalled.0, flowing.0));
        assert!(life.is_idle());
    });
}
