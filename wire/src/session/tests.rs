use super::*;
use crate::Incarnation;

fn hello(uri: &str) -> Hello {
    Hello {
        version_min: control::VERSION_MIN,
        version_max: control::VERSION_MAX,
        features: 0,
        node: NodeId::from_uri(uri).unwrap(),
        incarnation: Incarnation(7),
        release: "0.1.0".into(),
        addresses: vec![],
    }
}

const BO: &str = "spiffe://shop/bo/bo-1";
const FO: &str = "spiffe://shop/fo/fo-1";

fn pair(now: Instant) -> (Session, Session) {
    let mut a = Session::new(hello(BO), hello(FO).node, Liveness::default(), now);
    let mut b = Session::new(hello(FO), hello(BO).node, Liveness::default(), now);
    exchange(now, &mut a, &mut b).unwrap();
    assert!(matches!(a.poll_event(), Some(Event::Opened { version: 1, .. })));
    assert!(matches!(b.poll_event(), Some(Event::Opened { version: 1, .. })));
    (a, b)
}

/// Carries frames both ways through their bytes until none is left.
fn exchange(now: Instant, a: &mut Session, b: &mut Session) -> Result<(), Close> {
    loop {
        let mut moved = false;
        for (from, to) in [(&mut *a, &mut *b)] {
            while let Some(frame) = from.poll_transmit() {
                moved = true;
                to.handle(now, through_bytes(&frame))?;
            }
        }
        while let Some(frame) = b.poll_transmit() {
            moved = true;
            a.handle(now, through_bytes(&frame))?;
        }
        if !moved {
            return Ok(());
        }
    }
}

fn through_bytes(frame: &Control) -> Control {
    let mut bytes = Vec::new();
    control::write(&mut bytes, frame).unwrap();
    assert_eq!(control::read(&bytes[..bytes.len() - 1]).unwrap(), None);
    let (read, used) = control::read(&bytes).unwrap().unwrap();
    assert_eq!(used, bytes.len());
    read
}

#[test]
fn a_hello_that_is_not_the_certificates_closes_the_session() {
    let now = Instant::now();
    let mut session = Session::new(hello(BO), hello(FO).node, Liveness::default(), now);
    assert_eq!(session.handle(now, Control::Hello(hello("spiffe://shop/bo/fo-1"))), Err(Close::Identity));
    assert!(!session.is_open());
}

#[test]
fn versions_without_overlap_close_the_session_and_overlapping_ones_agree_on_the_highest() {
    let now = Instant::now();
    let between = |min, max| {
        let mut session = Session::new(Hello { version_min: 2, version_max: 4, ..hello(BO) }, hello(FO).node, Liveness::default(), now);
        session.handle(now, Control::Hello(Hello { version_min: min, version_max: max, ..hello(FO) }))?;
        match session.poll_event() {
            Some(Event::Opened { version, .. }) => Ok(version),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(between(1, 1), Err(Close::Version));
    assert_eq!(between(5, 9), Err(Close::Version));
    assert_eq!(between(1, 3), Ok(3));
    assert_eq!(between(4, 9), Ok(4));
}

#[test]
fn nothing_goes_out_before_the_hello_is_answered_and_nothing_is_taken_before_it() {
    let now = Instant::now();
    let mut session = Session::new(hello(BO), hello(FO).node, Liveness::default(), now);
    session.bind("stock".parse().unwrap(), None).unwrap();
    assert!(matches!(session.poll_transmit(), Some(Control::Hello(_))));
    assert_eq!(session.poll_transmit(), None);
    assert_eq!(session.handle(now, Control::GoAway), Err(Close::Protocol));
}

#[test]
fn a_peer_whose_heartbeats_stop_is_suspect_and_then_down_and_one_that_answers_is_neither() {
    let start = Instant::now();
    let (mut a, mut b) = pair(start);
    let mut now = start;
    let mut answered_until = start;
    let mut log = Vec::new();
    let end = loop {
        now = a.next_timeout().unwrap().max(now);
        if let Err(close) = a.handle_timeout(now) {
            break close;
        }
        while let Some(frame) = a.poll_transmit() {
            if now < start + Duration::from_secs(60) {
                answered_until = now;
                b.handle(now, frame).unwrap();
            }
        }
        while let Some(event) = b.poll_event() {
            let Event::Heartbeat { sequence } = event else { panic!("{event:?}") };
            b.answer_heartbeat(sequence).unwrap();
        }
        while let Some(frame) = b.poll_transmit() {
            a.handle(now, frame).unwrap();
        }
        while let Some(event) = a.poll_event() {
            log.push((event, now.duration_since(answered_until)));
        }
    };
    assert_eq!(end, Close::Silent);
    assert_eq!(log, [(Event::Suspect, Duration::from_millis(1500))]);
    assert_eq!(now.duration_since(answered_until), Duration::from_millis(2500));
}

#[test]
fn an_answer_finds_its_own_call_and_no_other_even_when_the_index_is_used_again() {
    let mut calls = Calls::default();
    let first = calls.insert("first").unwrap();
    assert_eq!(calls.take(first), Some("first"));
    let second = calls.insert("second").unwrap();
    assert_eq!(first as u32, second as u32, "the index is used again");
    assert_eq!(calls.take(first), None, "a late answer to the first");
    assert_eq!(calls.take(second), Some("second"));
    assert_eq!(calls.take(second), None, "a duplicate");
    assert!(calls.is_empty());
}

#[test]
fn calls_over_the_limit_are_refused() {
    let mut calls = Calls::default();
    for _ in 0..MAX_CALLS {
        calls.insert(()).unwrap();
    }
    assert_eq!(calls.insert(()), None);
    assert_eq!(calls.drain().count(), MAX_CALLS);
}

#[test]
fn credit_is_never_more_than_it_was() {
    let mut credit = Credit::new(2, 100);
    assert!(credit.take(1_000_000), "the largest goes alone");
    assert!(!credit.take(1));
    credit.give(1_000_000);
    assert!(credit.take(60) && !credit.take(60) && credit.take(40) && !credit.take(0));
    credit.give(60);
    credit.give(40);
    assert_eq!(credit, Credit::new(2, 100));
}

#[test]
fn a_peer_that_asks_for_more_than_its_share_is_closed() {
    let now = Instant::now();
    let (mut a, _) = pair(now);
    let bind = |binding| Control::Bind(Bind { binding, name: "stock".parse().unwrap(), protocol: None });
    for i in 0..control::MAX_BINDINGS as u32 {
        a.handle(now, bind(i)).unwrap();
    }
    assert_eq!(a.handle(now, bind(9)), Err(Close::Limit));
}

#[test]
fn answers_to_questions_never_asked_close_the_session_but_those_that_cross_do_not() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let watch = a.watch(1).unwrap().unwrap();
    exchange(now, &mut a, &mut b).unwrap();
    assert_eq!(b.poll_event(), Some(Event::Watch { watch, target: 1 }));
    a.unwatch(watch).unwrap();
    b.down(watch, DownReason::Died).unwrap();
    exchange(now, &mut a, &mut b).unwrap();
    assert_eq!((a.poll_event(), b.poll_event()), (None, None));
    assert_eq!(a.handle(now, Control::Bound { binding: 99, outcome: Err(NoEffect::Stopping) }), Err(Close::Protocol));
}

#[test]
fn no_more_watches_are_set_than_the_peer_puts_up_with_and_one_taken_back_makes_room() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let watches: Vec<u32> = (0..control::MAX_WATCHES).map(|_| a.watch(1).unwrap().unwrap()).collect();
    assert_eq!(a.watch(1), Ok(None));
    exchange(now, &mut a, &mut b).unwrap();
    // What makes room may still be on its way when the room is taken.
    a.unwatch(watches[0]).unwrap();
    b.down(watches[1], DownReason::Died).unwrap();
    assert!(a.watch(1).unwrap().is_some());
    assert_eq!(a.watch(1), Ok(None));
    exchange(now, &mut a, &mut b).unwrap();
    assert!(a.watch(1).unwrap().is_some());
    assert_eq!(a.watch(1), Ok(None));
    exchange(now, &mut a, &mut b).unwrap();
}

#[test]
fn watches_set_and_dropped_at_once_are_never_sent() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    for _ in 0..2 * MAX_OUTBOX {
        let watch = a.watch(1).unwrap().unwrap();
        a.unwatch(watch).unwrap();
    }
    assert_eq!(a.poll_transmit(), None);
    exchange(now, &mut a, &mut b).unwrap();
    assert_eq!(b.poll_event(), None);
}

/// What one end of the played session has asked for and been told.
#[derive(Default)]
struct Ledger {
    bindings: HashSet<u32>,
    answered: HashSet<u32>,
    watches: HashSet<u32>,
    given_up: HashSet<u32>,
    down: HashSet<u32>,
    to_answer: Vec<u32>,
    to_bury: Vec<u32>,
    heartbeats: Vec<u64>,
}

/// Two sessions and the frames on their way, in order each way but as late as the dice say.
struct Play {
    ends: [Session; 2],
    ledgers: [Ledger; 2],
    on_the_way: [VecDeque<Vec<u8>>; 2],
    now: Instant,
    log: Vec<String>,
}

impl Play {
    fn step(&mut self, who: usize, what: u8) -> Result<(), Close> {
        let (session, ledger) = (&mut self.ends[who], &mut self.ledgers[who]);
        match what {
            0 => drop(ledger.bindings.insert(session.bind("stock".parse().unwrap(), None)?)),
            1 => ledger.watches.extend(session.watch(1)?),
            2 => {
                if let Some(watch) = ledger.watches.iter().find(|watch| !ledger.given_up.contains(watch)).copied() {
                    ledger.given_up.insert(watch);
                    session.unwatch(watch)?;
                }
            }
            3 => {
                if let Some(binding) = ledger.to_answer.pop() {
                    session.bound(binding, Err(NoEffect::Stopping))?;
                }
            }
            4 => {
                if let Some(watch) = ledger.to_bury.pop() {
                    session.down(watch, DownReason::Died)?;
                }
            }
            5 => {
                if let Some(sequence) = ledger.heartbeats.pop() {
                    ledger.heartbeats.clear();
                    session.answer_heartbeat(sequence)?;
                }
            }
            6 => {
                session.grant(1, 7)?;
                session.cancel(9)?;
            }
            7 => {
                if let Some(frame) = session.poll_transmit() {
                    let mut bytes = Vec::new();
                    control::write(&mut bytes, &frame).unwrap();
                    self.on_the_way[who].push_back(bytes);
                }
            }
            8 => {
                if let Some(bytes) = self.on_the_way[1 - who].pop_front() {
                    let (frame, _) = control::read(&bytes).unwrap().unwrap();
                    self.log.push(format!("{who} hears {frame:?}"));
                    session.handle(self.now, frame)?;
                }
            }
            _ => {
                self.now += Duration::from_millis(20);
                if session.next_timeout().is_some_and(|at| at <= self.now) {
                    session.handle_timeout(self.now)?;
                }
            }
        }
        self.hear(who);
        Ok(())
    }

    fn hear(&mut self, who: usize) {
        while let Some(event) = self.ends[who].poll_event() {
            let ledger = &mut self.ledgers[who];
            match event {
                Event::Bind(bind) => ledger.to_answer.push(bind.binding),
                Event::Bound { binding, .. } => {
                    assert!(ledger.bindings.contains(&binding), "an answer to a question never asked");
                    assert!(ledger.answered.insert(binding), "answered twice");
                }
                Event::Watch { watch, .. } => ledger.to_bury.push(watch),
                Event::Unwatch { watch } => ledger.to_bury.retain(|known| *known != watch),
                Event::Down { watch, .. } => {
                    assert!(!ledger.given_up.contains(&watch), "told of a death after the watch was taken back");
                    assert!(ledger.down.insert(watch), "one watch, two deaths");
                }
                Event::Heartbeat { sequence } => ledger.heartbeats.push(sequence),
                Event::Opened { .. } | Event::Offers(_) | Event::Grant { .. } | Event::Cancel { .. } => {}
                Event::GoAway | Event::DenyList(_) | Event::Suspect | Event::Recovered => {}
            }
        }
    }
}

proptest::proptest! {
    /// Whatever the order and however late, a question has one answer and a watch one death, and only silence ends it.
    #[test]
    fn two_sessions_agree_however_late_their_frames_are(steps in proptest::collection::vec((0usize..2, 0u8..10), 0..600)) {
        let start = Instant::now();
        let (a, b) = pair(start);
        let mut play = Play {
            ends: [a, b],
            ledgers: [Ledger::default(), Ledger::default()],
            on_the_way: [VecDeque::new(), VecDeque::new()],
            now: start,
            log: Vec::new(),
        };
        for (who, what) in steps {
            if let Err(close) = play.step(who, what) {
                // Frames may lie about for longer than a peer may be silent; nothing else closes an honest session.
                proptest::prop_assert_eq!(close, Close::Silent, "{:#?}", play.log);
                proptest::prop_assert!(play.now.duration_since(start) >= Liveness::default().down);
                return Ok(());
            }
        }
        // Then everything is carried and answered: nobody is left with an open question.
        for _ in 0..2_000 {
            for who in 0..2 {
                for what in [7, 8, 3, 4, 5] {
                    play.step(who, what).unwrap();
                }
            }
        }
        for ledger in &play.ledgers {
            proptest::prop_assert_eq!(&ledger.bindings, &ledger.answered);
            let told: HashSet<u32> = ledger.watches.difference(&ledger.given_up).copied().collect();
            proptest::prop_assert!(told.is_subset(&ledger.down));
        }
    }
}

#[test]
fn callers_that_give_up_by_the_thousand_do_not_end_the_session() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    for correlation in 0..3 * MAX_OUTBOX as u64 {
        a.cancel(correlation).unwrap();
    }
    // There is room left for what must be said.
    a.bind("stock".parse().unwrap(), None).unwrap();
    exchange(now, &mut a, &mut b).unwrap();
    assert!(a.is_open() && b.is_open());
    assert!(std::iter::from_fn(|| b.poll_event()).any(|event| matches!(event, Event::Bind(_))));
}

#[test]
fn a_hello_that_says_too_much_closes_the_session() {
    let now = Instant::now();
    let addresses = |count: u16| (0..count).map(|port| ([10, 0, 0, 1], port).into()).collect();
    let most = control::MAX_ADDRESSES as u16;
    let said = |hello: Hello| {
        let mut session = Session::new(self::hello(BO), self::hello(FO).node, Liveness::default(), now);
        session.handle(now, Control::Hello(hello))
    };
    assert_eq!(said(Hello { addresses: addresses(most), ..hello(FO) }), Ok(()));
    assert_eq!(said(Hello { addresses: addresses(most + 1), ..hello(FO) }), Err(Close::Limit));
    assert_eq!(said(Hello { release: "x".repeat(control::MAX_RELEASE + 1).into(), ..hello(FO) }), Err(Close::Limit));
}
