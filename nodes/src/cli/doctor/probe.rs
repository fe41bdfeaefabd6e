//! Whether something that speaks QUIC answers at an address: without a certificate, and without leaving a trace there.
//!
//! A packet of a version that nobody speaks is answered with the versions that are spoken (RFC 9000 §6.1), before any
//! handshake and without state. That shows the way there and back, firewalls included.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    time::{Duration, Instant},
};

use crate::config::Endpoint;

/// For all answers together.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Packets are lost: those without an answer are asked again.
const AGAIN: Duration = Duration::from_millis(400);
/// RFC 9000 §15 reserves versions of this form for just this.
const VERSION: u32 = 0x1a2a_3a4a;
/// A server answers no smaller datagram (RFC 9000 §14.1).
const DATAGRAM: usize = 1200;
/// Of our connection ids; the answer brings them back.
const ID: usize = 8;

/// What came of asking one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Probed {
    /// A QUIC server answered after so long.
    Answered(Duration),
    /// Nothing came back, or not from there.
    Silent,
    /// It could not be asked.
    Failed(String),
}

/// Asks every one of `endpoints`, all at once; ends within two seconds of the names being resolved.
pub(super) fn probe(endpoints: &[Endpoint]) -> Vec<Probed> {
    let mut found = vec![Probed::Silent; endpoints.len()];
    let mut waiting: HashMap<[u8; ID], (usize, SocketAddr)> = HashMap::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        match endpoint.to_string().to_socket_addrs().map(|mut addresses| addresses.next()) {
            Ok(Some(address)) => {
                waiting.insert(rand::random(), (i, address));
            }
            Ok(None) => found[i] = Probed::Failed("the name has no address".into()),
            Err(error) => found[i] = Probed::Failed(error.to_string()),
        }
    }
    for v6 in [false, true] {
        let mut ours: HashMap<_, _> =
            waiting.iter().filter(|(_, (_, address))| address.is_ipv6() == v6).map(|(id, it)| (*id, *it)).collect();
        if !ours.is_empty()
            && let Err(error) = ask(v6, &mut ours, &mut found)
        {
            for (i, _) in ours.values() {
                found[*i] = Probed::Failed(error.to_string());
            }
        }
    }
    found
}

fn ask(v6: bool, waiting: &mut HashMap<[u8; ID], (usize, SocketAddr)>, found: &mut [Probed]) -> io::Result<()> {
    let any = if v6 { SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)) } else { SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)) };
    let socket = UdpSocket::bind(any)?;
    let begun = Instant::now();
    let mut asked: Option<Instant> = None;
    let mut buffer = [0; 2048];
    while !waiting.is_empty() && begun.elapsed() < PATIENCE {
        if asked.is_none_or(|at| at.elapsed() >= AGAIN) {
            asked = Some(Instant::now());
            for (id, (i, address)) in &*waiting {
                // No route, or a port that was refused a moment ago (ICMP): told of this address, not of all.
                if let Err(error) = socket.send_to(&question(id), *address) {
                    found[*i] = Probed::Failed(error.to_string());
                }
            }
        }
        socket.set_read_timeout(Some(AGAIN.min(PATIENCE)))?;
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                if let Some(id) = answer(&buffer[..length])
                    && let Some((i, address)) = waiting.get(&id).copied()
                    && address == from
                {
                    waiting.remove(&id);
                    found[i] = Probed::Answered(begun.elapsed());
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A long header with an unspoken version (RFC 8999 §5.1), filled up with zeros.
fn question(id: &[u8; ID]) -> [u8; DATAGRAM] {
    let mut packet = [0; DATAGRAM];
    // Long header, fixed bit.
    packet[0] = 0xc0;
    packet[1..5].copy_from_slice(&VERSION.to_be_bytes());
    for (at, id) in [(5, id), (6 + ID, id)] {
        packet[at] = ID as u8;
        packet[at + 1..at + 1 + ID].copy_from_slice(id);
    }
    packet
}

/// The connection id that a Version Negotiation packet (RFC 9000 §17.2.1) brings back.
fn answer(packet: &[u8]) -> Option<[u8; ID]> {
    let long = packet.first()? & 0x80 != 0;
    let version = packet.get(1..5)?;
    let id = packet.get(6..6 + ID)?;
    (long && version == [0; 4] && usize::from(packet[5]) == ID).then(|| id.try_into().expect("its length was asked for"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_answers_before_any_certificate_is_shown_and_a_silent_port_does_not() {
        let quiet = UdpSocket::bind("127.0.0.1:0").unwrap();
        // As a QUIC server does it: both ids swapped, version 0, the versions spoken.
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let endpoints = [&server, &quiet].map(|socket| Endpoint::from(socket.local_addr().unwrap()));
        let answering = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((length, &buffer[1..5]), (DATAGRAM, &VERSION.to_be_bytes()[..]));
            let mut reply = vec![0x80, 0, 0, 0, 0, ID as u8];
            reply.extend_from_slice(&buffer[7 + ID..7 + 2 * ID]);
            reply.push(ID as u8);
            reply.extend_from_slice(&buffer[6..6 + ID]);
            reply.extend_from_slice(&1u32.to_be_bytes());
            server.send_to(&reply, from).unwrap();
        });
        let found = probe(&endpoints);
        answering.join().unwrap();
        assert!(matches!(found[..], [Probed::Answered(_), Probed::Silent]), "{found:?}");
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let id = [7; ID];
        let mut good = question(&id);
        good[1..5].fill(0);
        assert_eq!(answer(&good), Some(id));
        assert_eq!(answer(&question(&id)), None);
        assert_eq!(answer(&good[..10]), None);
        assert_eq!(answer(&[]), None);
    }
}
