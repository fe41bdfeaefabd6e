use std::sync::Arc;

use super::*;
use crate::tools::tests::{caller, definition};

fn asked<'a>(definition: &'a Definition, caller: &'a Caller, arguments: &'a [u8; 32]) -> Asked<'a> {
    Asked { definition, caller, arguments }
}

#[test]
fn the_hash_is_hmac_sha256() {
    // RFC 4231 §4.3 has a short key; padded with zeroes it is the same key (RFC 2104 §2). The parts' lengths are ours, so it is asked
    // of what is beneath.
    let mut key = [0; 32];
    key[..4].copy_from_slice(b"Jefe");
    let mac = hashed(&key, |hash| hash.update(b"what do ya want for nothing?"));
    let wanted = [0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7];
    assert_eq!(mac[..16], wanted);
    // No two lists of parts are one message.
    assert_ne!(hmac(&key, &[b"ab", b"c"]), hmac(&key, &[b"a", b"bc"]));
}

#[tokio::test(start_paused = true)]
async fn a_token_confirms_its_own_call_once_and_for_two_minutes() {
    let confirms = Confirms::new();
    let (ana, bea, one, other) = (caller("ana"), caller("bea"), definition("one", 1), definition("other", 1));
    let edited = definition("one", 2);
    let (arguments, changed) = ([1; 32], [2; 32]);
    let token = confirms.token(&asked(&one, &ana, &arguments));
    for wrong in [
        asked(&one, &bea, &arguments),
        asked(&other, &ana, &arguments),
        asked(&edited, &ana, &arguments),
        asked(&one, &ana, &changed),
        asked(&one, &Caller { session: Some(Arc::from("s")), ..caller("ana") }, &arguments),
    ] {
        assert_eq!(confirms.confirm(&wrong, &token), Err(Unconfirmed::Other));
    }
    for wrong in ["", "x", &token[1..], &format!("{token}A"), &"A".repeat(token.len()), &"A".repeat(1 << 20)] {
        assert_eq!(confirms.confirm(&asked(&one, &ana, &arguments), wrong), Err(Unconfirmed::Other));
    }
    // Nothing of it counts if any bit is another.
    for at in 0..LENGTH {
        let mut bytes = URL_SAFE_NO_PAD.decode(&*token).unwrap();
        bytes[at] ^= 1;
        let forged = URL_SAFE_NO_PAD.encode(bytes);
        assert_eq!(confirms.confirm(&asked(&one, &ana, &arguments), &forged), Err(Unconfirmed::Other), "byte {at}");
    }
    assert_eq!(Confirms::new().confirm(&asked(&one, &ana, &arguments), &token), Err(Unconfirmed::Other), "another node's");

    tokio::time::advance(HOLDS - Duration::from_millis(1)).await;
    assert_eq!(confirms.confirm(&asked(&one, &ana, &arguments), &token), Ok(()));
    assert_eq!(confirms.confirm(&asked(&one, &ana, &arguments), &token), Err(Unconfirmed::Used));
    let late = confirms.token(&asked(&one, &ana, &arguments));
    assert_ne!(late, token);
    tokio::time::advance(HOLDS).await;
    assert_eq!(confirms.confirm(&asked(&one, &ana, &arguments), &late), Err(Unconfirmed::Expired));
    assert_eq!(confirms.confirm(&asked(&one, &ana, &arguments), &token), Err(Unconfirmed::Expired));
}

#[tokio::test(start_paused = true)]
async fn used_tokens_are_forgotten_when_they_would_have_run_out_and_not_before() {
    let confirms = Confirms::new();
    let (ana, one) = (caller("ana"), definition("one", 1));
    let asked = || asked(&one, &ana, &[0; 32]);
    confirms.confirm(&asked(), &confirms.token(&asked())).unwrap();
    fill(&confirms);
    assert_eq!(confirms.confirm(&asked(), &confirms.token(&asked())), Err(Unconfirmed::Full));
    tokio::time::advance(HOLDS).await;
    confirms.confirm(&asked(), &confirms.token(&asked())).unwrap();
    assert_eq!(confirms.used.lock().all.len(), 1);
}

/// As if as many as are remembered had been used in this instant.
fn fill(confirms: &Confirms) {
    let used = &mut *confirms.used.lock();
    for at in 1..USED as u64 {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&at.to_be_bytes());
        used.all.insert(bytes);
        used.order.push_back((Instant::now() + HOLDS, bytes));
    }
}
